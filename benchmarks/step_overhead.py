"""What a shard does beside a decode step's forward, by the number of sequences: the message is read and the batch laid out,
tokens are chosen and the answer is written. A GPU has nothing to do in the meantime where no step can be launched ahead.

In: models and batch sizes. Out: one Markdown table. The embedded model says it best: its vocabulary is small.
"""

import argparse
import logging
import sys

from decode import prompts
from decode_loop import WARM_UP_STEPS, DecodeLoop
from generated_model import add_cache_argument, model_folder
from hardware import heading
from table import markdown, median

from text_generation_server.config import ShardConfig
from text_generation_server.runner import load_runner

CONTEXT_TOKENS = 64
NUM_STEPS = 40


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Decode batches of several sizes through the shard server's code in this process, and print what a step "
        "takes beside the model's forward."
    )
    parser.add_argument("--models", nargs="+", default=["embedded"], metavar="MODEL", help="default: embedded")
    parser.add_argument(
        "--batch-sizes", nargs="+", type=int, default=[1, 16, 64, 256], metavar="N", help="default: 1 16 64 256"
    )
    add_cache_argument(parser)
    return parser.parse_args(argv)


def measure(model: str, arguments: argparse.Namespace) -> list[list[str]]:
    folder = model_folder(model, arguments.cache)
    runner = load_runner(ShardConfig(model_id=str(folder), kv_cache_gib=1.0), folder)
    rows = []
    for size in arguments.batch_sizes:
        loop = DecodeLoop(runner, prompts(size, CONTEXT_TOKENS, runner.model.config.vocab_size), 1 + WARM_UP_STEPS + NUM_STEPS)
        micros = _time(loop)
        rows.append([folder.name, str(size), f"{micros:.0f} µs", f"{micros / size:.1f} µs"])
    return rows


def _time(loop: DecodeLoop) -> float:
    """The median in microseconds."""
    loop.time_steps(0)
    micros = []
    for _ in range(NUM_STEPS):
        step_micros = loop.runner.timings.step_micros
        loop.step()
        micros.append(loop.runner.timings.step_micros - step_micros - loop.result.forward_micros)
    return median(micros)


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])
    logging.basicConfig(level=logging.WARNING)
    rows = [row for model in arguments.models for row in measure(model, arguments)]
    print(heading() + "\n")
    print(markdown(["model", "sequences", "beside the forward", "for each sequence"], rows))


if __name__ == "__main__":
    main()

"""What users notice beside plain speed, through HTTP: a prefix that is known, a long prompt among running streams, a text that
repeats itself, and the wait for a server that starts.

In: a model for each. Out: one Markdown table a scenario; each figure stands beside the same server without what it shows.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import logging
import re
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from endless_model import endless_folder
from generated_model import add_cache_argument, model_folder
from hardware import heading
from load import Answer, Load
from prompts import Prompts
from served_model import ServedModel
from table import markdown, median, percentile

KV_CACHE = ("--kv-cache-gib", "2")
PREFIX_TOKENS, OWN_TOKENS = 512, 16
NUM_FOLLOWERS = 5
RUNNING_CLIENTS, RUNNING_PROMPT, RUNNING_TOKENS = 8, 32, 160
LONG_PROMPT, BEGUN_TOKENS = 2000, 16
REPEATED_LINE, REPEATED_LINES = "To be, or not to be, that is the question.\n", 8
REPEATED_TOKENS, REPEATED_ROUNDS = 192, 3
SPECULATE = 8
NUM_STARTS = 3


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Start the launcher and measure through HTTP: the time to the first token of prompts that share their "
        f"first {PREFIX_TOKENS} tokens; the gaps between the tokens of {RUNNING_CLIENTS} running streams while a prompt of "
        f"{LONG_PROMPT} tokens arrives; a text that repeats itself with and without --speculate; and how long a start takes.",
    )
    parser.add_argument("--model", default="560m", metavar="MODEL", help="of the first two: a name or a folder; default: 560m")
    parser.add_argument("--repeating-model", default="embedded", metavar="MODEL", help="of the last two; default: embedded")
    parser.add_argument(
        "--only", choices=("prefix", "mixed", "repetition", "start"), nargs="+", help="default: all"
    )
    add_cache_argument(parser)
    return parser.parse_args(argv)


def measure_prefix(folder: Path) -> str:
    """The server reads prompts of this length first, so that nothing is done for the first time."""
    prefix, own = next(_texts(folder, PREFIX_TOKENS)), _texts(folder, OWN_TOKENS)
    with ServedModel(folder, KV_CACHE) as server:
        _stream(server, _texts(folder, PREFIX_TOKENS + OWN_TOKENS, skip=1), 1, 2)
        first, *followers = [
            _stream(server, iter([prefix + next(own)]), 1, 2)[0].first_token_seconds for _ in range(1 + NUM_FOLLOWERS)
        ]
    cells = [str(PREFIX_TOKENS), _milliseconds(first), _milliseconds(median(followers)), f"{first / median(followers):.1f}"]
    return markdown(("shared tokens", "first request", "later ones, median", "ratio"), [cells])


def measure_mixed(folder: Path) -> str:
    with ServedModel(folder, KV_CACHE) as server:
        _stream(server, _texts(folder, RUNNING_PROMPT, skip=50), RUNNING_CLIENTS, 8)
        alone = asyncio.run(_run_mixed(server, folder, None))
        mixed = asyncio.run(_run_mixed(server, folder, next(_texts(folder, LONG_PROMPT))))
    titles = ("", "between tokens, median", "p95", "largest", "largest / median", "long prompt's first token")
    return markdown(titles, [_gap_cells("streams alone", *alone), _gap_cells("a long prompt arrives", *mixed)])


async def _run_mixed(server: ServedModel, folder: Path, long_prompt: str | None) -> tuple[list[float], float | None]:
    """The gaps of the running streams, and the first token of the long prompt, which is sent when all of them run."""
    begun: dict[int, int] = {}
    all_run = asyncio.Event()

    def look(answer: Answer) -> None:
        begun[id(answer)] = len(answer.token_seconds)
        if len(begun) == RUNNING_CLIENTS and min(begun.values()) >= BEGUN_TOKENS:
            all_run.set()

    running = Load(server.url, _texts(folder, RUNNING_PROMPT, skip=long_prompt is not None), RUNNING_TOKENS)
    task = asyncio.create_task(running.run(RUNNING_CLIENTS, 1, look))
    first_seconds = None
    if long_prompt is not None:
        await all_run.wait()
        (answer,) = await Load(server.url, iter([long_prompt]), 2).run(1, 1)
        first_seconds = answer.first_token_seconds
    # Until all have begun they wait for each other's prompts, and that is not what is asked here.
    return [gap for answer in await task for gap in answer.gap_seconds[BEGUN_TOKENS:]], first_seconds


def _gap_cells(name: str, gaps: list[float], first_seconds: float | None) -> list[str]:
    middle = median(gaps)
    cells = [name, _milliseconds(middle), _milliseconds(percentile(gaps, 0.95)), _milliseconds(max(gaps))]
    return [*cells, f"{max(gaps) / middle:.2f}", _milliseconds(first_seconds) if first_seconds else ""]


def measure_repetition(folder: Path) -> str:
    """A line said again and again: what follows does so too, and that is the text that guesses are made for."""
    rows, texts, seconds = [], [], []
    for num_guesses in (0, SPECULATE):
        with ServedModel(folder, [*KV_CACHE, "--speculate", str(num_guesses)]) as server:
            prompt = REPEATED_LINE * REPEATED_LINES
            _stream(server, iter([prompt]), 1, REPEATED_TOKENS)
            answers = [_stream(server, iter([prompt]), 1, REPEATED_TOKENS)[0] for _ in range(REPEATED_ROUNDS)]
            seconds.append(median([answer.token_seconds[-1] - answer.token_seconds[0] for answer in answers]))
            texts.append(_text(server.url, prompt))
        speed = (REPEATED_TOKENS - 1) / seconds[-1]
        rows.append([str(num_guesses), f"{speed:.1f}", f"{seconds[0] / seconds[-1]:.2f}", str(texts[0] == texts[-1])])
    return markdown(("--speculate", "tokens/s", "beside none", "same text"), rows)


def measure_start(folder: Path) -> str:
    """Each stage's seconds count from the launcher's start, but for the weights', which the shard takes among them."""
    starts = []
    for _ in range(NUM_STARTS):
        with ServedModel(folder, KV_CACHE) as server:
            (answer,) = _stream(server, _texts(folder, 16), 1, 1)
            first = answer.token_seconds[0] - server.start_seconds
            starts.append((server.answering_seconds, _loading_seconds(server), server.healthy_seconds, first))
    cells = [f"{median(stage):.2f} s" for stage in zip(*starts, strict=True)]
    slowest = f"{max(first for *_, first in starts):.2f} s"
    titles = ("router answers", "weights and first step take", "shards ready", "first token", "the slowest")
    return markdown(titles, [[*cells, slowest]])


def _loading_seconds(server: ServedModel) -> float:
    """What the shard says of its weights and first step."""
    found = re.search(r"loading_seconds=([0-9.]+)", server.log.read_text(errors="replace"))
    assert found, "a shard that is ready has said so"
    return float(found.group(1))


def _stream(server: ServedModel, texts: Iterator[str], num_clients: int, num_tokens: int) -> list[Answer]:
    return asyncio.run(Load(server.url, texts, num_tokens).run(num_clients, 1))


def _texts(folder: Path, num_tokens: int, skip: int = 0) -> Iterator[str]:
    return itertools.islice(iter(Prompts(folder, num_tokens, shared_prefix=False)), skip * RUNNING_CLIENTS, None)


def _text(url: str, prompt: str) -> str:
    body = {"inputs": prompt, "parameters": {"max_new_tokens": REPEATED_TOKENS, "do_sample": False}}
    request = urllib.request.Request(f"{url}/generate", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as response:
        text: str = json.load(response)["generated_text"]
        return text


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"


SCENARIOS = {
    "prefix": measure_prefix,
    "mixed": measure_mixed,
    "repetition": measure_repetition,
    "start": measure_start,
}


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])
    logging.basicConfig(level=logging.WARNING)
    print(f"{heading()}\n")
    with contextlib.ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="text-generation-scenarios-")))
        for name in arguments.only or SCENARIOS:
            model = arguments.model if name in ("prefix", "mixed") else arguments.repeating_model
            folder = endless_folder(model_folder(model, arguments.cache), temporary / name)
            print(f"{name}, {Path(model).name}:\n\n{SCENARIOS[name](folder)}\n", flush=True)


if __name__ == "__main__":
    main()

"""How fast 8 bits decode here and in the libraries that are known for it on processors: ctranslate2 and llama.cpp.

In: a model, the Pythons of the virtual environments that the peers are installed in. Out: one Markdown table of tokens per
second, from the median time of a step. No server takes part, on neither side: each library makes its steps in a process.
"""

import argparse
import dataclasses
import gc
import itertools
import json
import logging
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from decode_loop import WARM_UP_STEPS, DecodeLoop
from endless_model import endless_folder
from generated_model import add_cache_argument, model_folder
from hardware import heading, num_cores
from peer_servers import versions
from table import markdown, median

from text_generation_server.config import QUANTIZE_KINDS, ShardConfig
from text_generation_server.runner import load_runner

KV_CACHE_GIB = 1.0
CTRANSLATE2_KINDS = ("float32", "int8")
HERE = Path(__file__).parent

Batch = list[list[int]]


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    program: str
    storage: str
    speeds: dict[int, float]  # tokens per second by batch size


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Decode the same prompts with this server's step and with ctranslate2 and llama.cpp, in their processes "
        "and without HTTP, and print a Markdown table of tokens per second. A peer whose Python is not given is left out."
    )
    parser.add_argument("--ctranslate2-python", type=Path, metavar="PATH", help="of an environment with it and transformers")
    parser.add_argument("--llama-cpp-python", type=Path, metavar="PATH", help="of an environment with llama-cpp-python")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="the model for llama.cpp; it is stored in Q8_0")
    parser.add_argument("--model", default="560m", metavar="MODEL", help="560m, embedded, or a folder; default: 560m")
    parser.add_argument(
        "--quantize",
        nargs="*",
        choices=QUANTIZE_KINDS,
        default=["bitsandbytes"],
        metavar="KIND",
        help=f"kinds of this server, beside none: {', '.join(QUANTIZE_KINDS)}; default: bitsandbytes",
    )
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=("float32", "bfloat16"),
        default=["float32"],
        metavar="DTYPE",
        help="of what this server does not quantize; default: float32",
    )
    parser.add_argument(
        "--batch-sizes",
        type=lambda text: [int(word) for word in text.split(",")],
        default=[1, 4, 16],
        metavar="N,N,…",
        help="llama.cpp's binding decodes one sequence at a time; default: 1,4,16",
    )
    parser.add_argument("--prompt-tokens", type=int, default=128, metavar="N", help="length of each prompt; default: 128")
    parser.add_argument("--new-tokens", type=int, default=64, metavar="N", help="length of each answer; default: 64")
    add_cache_argument(parser)
    arguments = parser.parse_args(argv)
    if bool(arguments.llama_cpp_python) != bool(arguments.gguf):
        parser.error("--llama-cpp-python and --gguf need each other")
    return arguments


def measure_all(folder: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    batches = {size: _prompts(size, arguments.prompt_tokens, vocab_size) for size in arguments.batch_sizes}
    for dtype, kind in itertools.product(arguments.dtypes, (None, *arguments.quantize)):
        storage = f"{kind}, {dtype} beside" if kind else dtype
        yield Row("this server", storage, _own_speeds(folder, dtype, kind, batches, arguments.new_tokens))
    if python := arguments.ctranslate2_python:
        for kind in CTRANSLATE2_KINDS:
            wanted = {"folder": str(folder), "kind": kind}
            yield Row("ctranslate2", kind, _peer_speeds(python, "ctranslate2_decode.py", wanted, batches, arguments.new_tokens))
    if python := arguments.llama_cpp_python:
        single, wanted = {1: batches.get(1, batches[min(batches)][:1])}, {"file": str(arguments.gguf)}
        yield Row("llama.cpp", "Q8_0", _peer_speeds(python, "llama_cpp_decode.py", wanted, single, arguments.new_tokens))


def _prompts(batch_size: int, num_tokens: int, vocab_size: int) -> Batch:
    chance = random.Random(0)
    return [[chance.randrange(4, vocab_size) for _ in range(num_tokens)] for _ in range(batch_size)]


def _own_speeds(folder: Path, dtype: str, kind: str | None, batches: dict[int, Batch], new_tokens: int) -> dict[int, float]:
    gc.collect()
    runner = load_runner(ShardConfig(model_id=str(folder), quantize=kind, dtype=dtype, kv_cache_gib=KV_CACHE_GIB), folder)
    num_steps = new_tokens - 1 - WARM_UP_STEPS
    return {
        size: size / median(DecodeLoop(runner, prompts, new_tokens).time_steps(num_steps)) for size, prompts in batches.items()
    }


def _peer_speeds(
    python: Path, program: str, wanted: dict[str, Any], batches: dict[int, Batch], new_tokens: int
) -> dict[int, float]:
    """The steps that count are the same ones as here: all but the prompts' own and the first few."""
    wanted |= {"batches": list(batches.values()), "num_tokens": new_tokens, "num_threads": num_cores()}
    run = subprocess.run([python, HERE / program], input=json.dumps(wanted), stdout=subprocess.PIPE, text=True, check=True)
    by_batch = json.loads(run.stdout.splitlines()[-1])
    return {size: size / _step_seconds(readings) for size, readings in zip(batches, by_batch, strict=True)}


def _step_seconds(readings: list[float]) -> float:
    return median([later - earlier for earlier, later in itertools.pairwise(readings[WARM_UP_STEPS:])])


def table(rows: Sequence[Row], batch_sizes: Sequence[int]) -> str:
    titles = ("program", "storage", *(f"batch {size}" for size in batch_sizes))
    cells = [[f"{row.speeds[size]:.1f}" if size in row.speeds else "" for size in batch_sizes] for row in rows]
    return markdown(titles, [[row.program, row.storage, *numbers] for row, numbers in zip(rows, cells, strict=True)])


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="text-generation-int8-") as temporary:
        folder = endless_folder(model_folder(arguments.model, arguments.cache), Path(temporary) / Path(arguments.model).name)
        rows = []
        for row in measure_all(folder, arguments):
            print(row.program, row.storage, row.speeds, file=sys.stderr, flush=True)
            rows.append(row)
    print(heading())
    for python in filter(None, (arguments.ctranslate2_python, arguments.llama_cpp_python)):
        print(f"Peer: {versions(python)}.")
    lengths = f"prompts of {arguments.prompt_tokens} tokens, {arguments.new_tokens} new ones"
    print(f"\n{folder.name}; {lengths}; tokens/s of a decode step (median).\n\n{table(rows, arguments.batch_sizes)}")


if __name__ == "__main__":
    main()

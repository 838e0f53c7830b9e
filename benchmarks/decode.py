"""How long a decode step takes, beside the time that reading the weights takes and beside transformers' `generate`.

In: names of models. Out: one Markdown table. The step runs through the shard's Runner in this process, as a router would
ask for it; the floor and the peer are measured in the same run with the same threads.
"""

import argparse
import dataclasses
import gc
import logging
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from decode_loop import WARM_UP_STEPS, DecodeLoop
from generated_model import add_cache_argument, model_folder
from hardware import heading
from memory_bandwidth import MemoryReader
from static_batch import StaticBatch
from table import markdown, median

from text_generation_server import device as devices
from text_generation_server.config import ShardConfig
from text_generation_server.runner import Runner, load_runner

NUM_TURNS = 10  # of steps, and of reading memory
KV_CACHE_GIB = {"cpu": 1.0, "cuda": 8.0}
TITLES = ("model", "dtype", "weights", "batch", "step", "floor", "step / floor", "transformers", "transformers / step")


@dataclasses.dataclass(frozen=True, slots=True)
class Measurement:
    """Seconds; of steps, medians."""

    model: str
    dtype: str
    weight_bytes: int
    batch_size: int
    step_seconds: float
    floor_seconds: float
    peer_seconds: float | None

    def cells(self) -> list[str]:
        return [
            self.model,
            self.dtype,
            f"{self.weight_bytes / 1e9:.3g} GB",
            str(self.batch_size),
            _milliseconds(self.step_seconds),
            f"{_milliseconds(self.floor_seconds)} ({self.weight_bytes / self.floor_seconds / 1e9:.0f} GB/s)",
            f"{self.step_seconds / self.floor_seconds:.2f}",
            _milliseconds(self.peer_seconds) if self.peer_seconds else "",
            f"{self.peer_seconds / self.step_seconds:.2f}" if self.peer_seconds else "",
        ]


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    on_cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description="Time one decode step (one more token for each sequence of a batch) of the shard server, beside the time "
        "that the device needs to read the weights once, and beside transformers' generate on the same prompts. Prints a "
        "Markdown table of medians. Run it on a machine that does nothing else."
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=["embedded", "560m", "7b1", "176b-eighth"] if on_cuda else ["embedded", "560m"],
        metavar="MODEL",
        help="embedded (the model in this repository), 560m, 7b1, 176b-eighth or, with --random-weights, 176b (BLOOM's shapes "
        "with generated weights), or folders of models; default: embedded and 560m, on CUDA all but 176b",
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 4, 16], metavar="N", help="default: 1 4 16")
    parser.add_argument("--context", type=int, default=128, metavar="TOKENS", help="tokens of each prompt; default: 128")
    parser.add_argument("--steps", type=int, default=40, metavar="N", help="steps that each median is of; default: 40")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on CUDA, float32 elsewhere"
    )
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="draw the weights in memory and generate no checkpoints; transformers is left out",
    )
    parser.add_argument("--num-threads", type=int, metavar="N", help="CPU threads of everything measured; default: all cores")
    parser.add_argument("--quick", action="store_true", help="the embedded model and few steps: does it run at all?")
    add_cache_argument(parser)
    arguments = parser.parse_args(argv)
    arguments.dtype = arguments.dtype or ("bfloat16" if on_cuda else "float32")
    if arguments.quick:
        arguments.models, arguments.steps = ["embedded"], 5
    return arguments


def measure(name: str, arguments: argparse.Namespace) -> list[Measurement]:
    """Ours first, with the floor in between, then the peer, so that only one of them is in memory."""
    folder = model_folder(name, arguments.cache, with_weights=not arguments.random_weights)
    runner = _load(folder, arguments)
    device, dtype, weight_bytes = runner.device, runner.dtype, runner.model.weight_bytes
    batches = {size: prompts(size, arguments.context, runner.model.config.vocab_size) for size in arguments.batch_sizes}
    reader = MemoryReader(weight_bytes, device)
    steps = {size: _time_steps(runner, batch, arguments.steps, reader) for size, batch in batches.items()}
    del runner, reader
    _free_memory()
    peer_steps = {} if arguments.random_weights else _time_peer(folder, dtype, device, batches, arguments.steps)
    return [
        Measurement(name, arguments.dtype, weight_bytes, size, *steps[size], peer_steps.get(size))
        for size in batches
    ]


def _time_peer(
    folder: Path, dtype: torch.dtype, device: torch.device, batches: dict[int, list[list[int]]], num_steps: int
) -> dict[int, float]:
    peer = StaticBatch(folder, dtype, device)
    steps = {size: median(peer.time_steps(batch, num_steps, WARM_UP_STEPS)) for size, batch in batches.items()}
    del peer
    _free_memory()
    return steps


def prompts(num_prompts: int, num_tokens: int, vocab_size: int) -> list[list[int]]:
    chance = random.Random(0)
    return [[chance.randrange(4, vocab_size) for _ in range(num_tokens)] for _ in range(num_prompts)]


def _load(folder: Path, arguments: argparse.Namespace) -> Runner:
    return load_runner(
        ShardConfig(
            model_id=str(folder),
            dtype=arguments.dtype,
            random_weights=arguments.random_weights,
            kv_cache_gib=KV_CACHE_GIB[devices.choose_device().type],
            num_threads=arguments.num_threads or (1 if torch.cuda.is_available() else None),
        ),
        folder,
    )


def _time_steps(runner: Runner, batch: list[list[int]], num_steps: int, reader: MemoryReader) -> tuple[float, float]:
    """Seconds of a step and of the floor, medians, some of each in turn."""
    num_in_turn = -(-num_steps // NUM_TURNS)
    loop = DecodeLoop(runner, batch, max_new_tokens=1 + NUM_TURNS * (WARM_UP_STEPS + num_in_turn))
    steps: list[float] = []
    reads: list[float] = []
    for _ in range(NUM_TURNS):
        reads.append(reader.read_seconds())
        steps += loop.time_steps(num_in_turn)
    return median(steps), median(reads)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])
    logging.basicConfig(level=logging.WARNING)
    rows = [measurement.cells() for name in arguments.models for measurement in measure(name, arguments)]
    print(f"{heading()}\n")
    print(f"Context {arguments.context} tokens, {arguments.steps} steps, {torch.get_num_threads()} threads.\n")
    print(markdown(TITLES, rows))


if __name__ == "__main__":
    main()

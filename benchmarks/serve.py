"""What clients get from the whole server through HTTP, and how well its pipeline keeps a shard busy.

In: a model and numbers of clients. Out: one Markdown table, the peer (transformers' `generate` of as many prompts as one static
batch, after the server has stopped) and the ratios that the project promises.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from generated_model import add_cache_argument, model_folder
from hardware import heading, num_cores, used_gpu_memory
from load import Answer, Load
from prompts import Prompts
from served_model import ServedModel, Timings
from static_batch import StaticBatch
from table import markdown, median, percentile

CPU_KV_CACHE_GIB = "2"
PEER_CLIENTS = 64 if torch.cuda.is_available() else 16
PEER_RUNS = 2
RANDOM_WEIGHTS = "--random-weights"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TITLES = (
    "clients",
    "tokens/s",
    "first token median",
    "p95",
    "between tokens median",
    "p95 ",
    "full batch: step",
    "shard waits",
    "client CPU",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Measurement:
    num_clients: int
    answers: list[Answer]
    wall_seconds: float
    load_cpu_seconds: float  # of this process, on the cores that the server needs too
    full_batch: Timings  # while every client's sequence decodes and none has ended

    @property
    def tokens_per_second(self) -> float:
        return sum(len(answer.token_seconds) for answer in self.answers) / self.wall_seconds

    def cells(self) -> list[str]:
        first = [answer.first_token_seconds for answer in self.answers]
        gaps = [gap for answer in self.answers for gap in answer.gap_seconds]
        return [
            str(self.num_clients),
            f"{self.tokens_per_second:.1f}",
            *(_milliseconds(value) for value in (median(first), percentile(first, 0.95))),
            *(_milliseconds(value) for value in (median(gaps), percentile(gaps, 0.95))),
            _milliseconds(self.full_batch.step_seconds),
            f"{self.full_batch.wait_share:.1%}",
            f"{self.load_cpu_seconds / self.wall_seconds:.0%}",
        ]


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Start the launcher with a router and shards on a free port, let clients stream answers from it, and "
        "print a Markdown table: output tokens per second over all clients, the time to a request's first token, the time "
        "between its tokens, and, in a round in which all clients' sequences decode together, a step's mean time and how "
        "long the shard waited between steps, as a share of the steps' time. Then the same prompts through transformers' "
        "generate. Clients run on the same machine: 'client CPU' is what they take of one core.",
        epilog="Flags for the launcher come last, after --, as in: serve.py --model 560m -- --num-threads 1",
    )
    parser.add_argument(
        "--model",
        default="560m",
        metavar="MODEL",
        help="embedded (the model in this repository), 560m, 7b1 or 176b-eighth (BLOOM's shapes with generated weights), or "
        "a model's folder; default: 560m",
    )
    parser.add_argument("--num-shard", type=int, default=1, metavar="N", help="shards that the model is split over; default: 1")
    parser.add_argument(
        "--clients", type=_numbers, default=[1, 4, 16, 32], metavar="N,N,…", help="one row each; default: 1,4,16,32"
    )
    parser.add_argument("--prompt-tokens", type=int, default=128, metavar="N", help="length of each prompt; default: 128")
    parser.add_argument("--new-tokens", type=int, default=64, metavar="N", help="length of each answer; default: 64")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="requests of each client; default: 3")
    parser.add_argument(
        "--full-batch-tokens",
        type=int,
        default=128,
        metavar="N",
        help="length of the answers in the round that shows the full batch's steps; default: 128",
    )
    parser.add_argument(
        "--shared-prefix",
        action="store_true",
        help="let all prompts begin alike, so that the prefix cache helps; default: they differ from the first token on",
    )
    parser.add_argument("--no-peer", action="store_true", help="leave out transformers")
    parser.add_argument("--quick", action="store_true", help="the embedded model, few clients and tokens: does it run at all?")
    parser.add_argument("launcher_arguments", nargs="*", metavar="-- LAUNCHER FLAGS", help="passed on as they are")
    add_cache_argument(parser)
    arguments = parser.parse_args(argv)
    arguments.no_peer |= RANDOM_WEIGHTS in arguments.launcher_arguments  # which transformers has not
    if arguments.quick:
        arguments.model, arguments.clients, arguments.rounds = "embedded", [1, 16], 1
        arguments.new_tokens, arguments.full_batch_tokens = 8, 16
    return arguments


async def measure_all(arguments: argparse.Namespace, server: ServedModel, texts: Iterator[str]) -> list[Measurement]:
    await Load(server.url, texts, arguments.new_tokens).run(num_clients=2, num_rounds=1)  # first calls are not counted
    return [await _measure(num_clients, arguments, server, texts) for num_clients in arguments.clients]


async def _measure(num_clients: int, arguments: argparse.Namespace, server: ServedModel, texts: Iterator[str]) -> Measurement:
    load = Load(server.url, texts, arguments.new_tokens)
    start_seconds, start_cpu_seconds = time.perf_counter(), time.process_time()
    answers = await load.run(num_clients, arguments.rounds)
    wall_seconds, cpu_seconds = time.perf_counter() - start_seconds, time.process_time() - start_cpu_seconds
    full_batch = await _full_batch(num_clients, Load(server.url, texts, arguments.full_batch_tokens), server)
    return Measurement(num_clients, answers, wall_seconds, cpu_seconds, full_batch)


async def _full_batch(num_clients: int, load: Load, server: ServedModel) -> Timings:
    """All start at once; the shard's clock is read when each has its first token, and when the first one nears its end."""
    readings: list[Timings] = []
    begun: set[int] = set()

    def look(answer: Answer) -> None:
        begun.add(id(answer))
        is_last = len(answer.token_seconds) >= load.max_new_tokens - 2  # the pipeline plans the end that far ahead
        if (not readings and len(begun) == num_clients) or (len(readings) == 1 and is_last):
            readings.append(server.timings())

    await load.run(num_clients, 1, look)
    if len(readings) < 2:
        raise RuntimeError("the clients' answers never overlapped: --full-batch-tokens is too small")
    return readings[1] - readings[0]


def measure_peer(folder: Path, info: dict[str, Any], prompts: list[list[int]], num_tokens: int) -> float:
    """Tokens per second of the static batch, the better of some runs."""
    torch.set_num_threads(num_cores())
    peer = StaticBatch(folder, DTYPES[info["model_dtype"]], torch.device(info["model_device_type"]))
    peer.time_whole(prompts, 2)
    seconds = min(peer.time_whole(prompts, num_tokens) for _ in range(PEER_RUNS))
    return len(prompts) * num_tokens / seconds


def report(
    arguments: argparse.Namespace,
    info: dict[str, Any],
    rows: list[Measurement],
    gpu_memory_bytes: int,
    peer_speed: float | None,
) -> str:
    what = f"{arguments.model} ({info['model_dtype']}), {arguments.num_shard} shard(s)"
    lengths = f"prompts of {arguments.prompt_tokens} tokens, answers of {arguments.new_tokens}"
    prefix = "prompts begin alike" if arguments.shared_prefix else "all prompts different"
    flags = f", launcher flags: {' '.join(arguments.launcher_arguments)}" if arguments.launcher_arguments else ""
    lines = [heading(), "", f"{what}; {lengths}, {arguments.rounds} rounds, {prefix}{flags}.", ""]
    lines.append(markdown(TITLES, [row.cells() for row in rows]))
    lines += ["", *_ratios({row.num_clients: row.tokens_per_second for row in rows}, peer_speed)]
    if gpu_memory_bytes:
        lines.append(f"- GPU memory in use, by all processes: {gpu_memory_bytes / 2**30:.1f} GiB")
    return "\n".join(lines)


def _ratios(speeds: dict[int, float], peer_speed: float | None) -> Iterator[str]:
    if 1 in speeds and PEER_CLIENTS in speeds:
        yield f"- {PEER_CLIENTS} clients / 1 client: {speeds[PEER_CLIENTS] / speeds[1]:.2f}"
    if peer_speed is not None:
        yield f"- transformers generate, static batch of {PEER_CLIENTS}: {peer_speed:.1f} tokens/s"
        if PEER_CLIENTS in speeds:
            yield f"- {PEER_CLIENTS} clients / transformers: {speeds[PEER_CLIENTS] / peer_speed:.2f}"


def _launcher_arguments(arguments: argparse.Namespace) -> list[str]:
    cache = [] if torch.cuda.is_available() else ["--kv-cache-gib", CPU_KV_CACHE_GIB]  # 32 clients of the 560m shape fit
    return ["--num-shard", str(arguments.num_shard), *cache, *arguments.launcher_arguments]


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])
    logging.basicConfig(level=logging.WARNING)
    folder = model_folder(arguments.model, arguments.cache, with_weights=RANDOM_WEIGHTS not in arguments.launcher_arguments)
    prompts = Prompts(folder, arguments.prompt_tokens, arguments.shared_prefix)
    texts = iter(prompts)
    with contextlib.closing(asyncio.Runner()) as runner, ServedModel(folder, _launcher_arguments(arguments)) as server:
        info = server.info()
        rows = runner.run(measure_all(arguments, server, texts))
        gpu_memory_bytes = used_gpu_memory()
    peer_speed = None
    if not arguments.no_peer:
        batch = [prompts.token_ids(text) for text in itertools.islice(texts, PEER_CLIENTS)]
        peer_speed = measure_peer(folder, info, batch, arguments.new_tokens)
    print(report(arguments, info, rows, gpu_memory_bytes, peer_speed))


if __name__ == "__main__":
    main()

"""How long a shard takes to load a checkpoint, and how much memory, beside reading the files' bytes and their size.

Two floors: reading the bytes through a buffer, and reading them into memory that the process has not had before, as any
loader must; where the machine is a virtual one, the second may be many times the first.

In: the size of a checkpoint, made in a temporary folder. Out: two Markdown tables: loading, and converting `.bin` files.
The files lie in the page cache for both sides, as nobody but root can empty it: on a machine that has just started, the
disk comes on top of both.
"""

import argparse
import dataclasses
import mmap
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import psutil
import torch
from generated_llama import GeneratedLlama
from hardware import heading
from shard_process import ShardProcess
from table import markdown, median

from text_generation_proto import shard_pb2, shard_pb2_grpc

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CASES = (("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "float32"))  # of the files, of --dtype
SHARD_FLAGS = ("--kv-cache-gib", "0.05", "--max-batch-tokens", "64")
CHUNK = 16 * 2**20
GB = 1e9
POLL_SECONDS = 0.005


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    loading_seconds: float  # what the shard's log says: weights, KV cache, first steps
    ready_seconds: float  # from the start of the process
    peak_bytes: int  # above what the process held before it loaded; pages of mapped files count


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Load random weights in Llama's shape; time and memory as Markdown tables.")
    parser.add_argument("--gigabytes", type=float, default=2.0, metavar="N", help="size of the files; default: 2")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="runs that each median is of; default: 3")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    arguments = parse_arguments(argv)
    file_bytes = int(arguments.gigabytes * GB)
    print(f"> {heading()}\n")
    rows = [_loading_row(file_bytes, stored, dtype, arguments.runs) for stored, dtype in CASES]
    floors = ["reading them", "into new memory"]
    titles = ["files, --dtype", "files", *floors, "loading", "ratio", "process ready", "weights", "peak", "ratio"]
    print(markdown(titles, rows), end="\n\n")
    titles = ["files", "size", *floors, "conversion", "ratio", "peak", "ratio"]
    print(markdown(titles, [_conversion_row(file_bytes, arguments.runs)]))


def _loading_row(file_bytes: int, stored: str, dtype: str, num_runs: int) -> list[str]:
    checkpoint = GeneratedLlama(file_bytes, DTYPES[stored])
    with tempfile.TemporaryDirectory(prefix="text-generation-loading-") as name:
        folder = Path(name)
        checkpoint.save(folder)
        size, floors = _size(folder), _floors(folder, num_runs)
        loads = [_load(folder, dtype) for _ in range(num_runs)]
    loading_seconds = median([load.loading_seconds for load in loads])
    ready_seconds = median([load.ready_seconds for load in loads])
    weights, peak = checkpoint.num_parameters * DTYPES[dtype].itemsize, max(load.peak_bytes for load in loads)
    times = [*_seconds(*floors, loading_seconds), f"{loading_seconds / floors[1]:.1f}", *_seconds(ready_seconds)]
    return [f"{stored}, {dtype}", _gb(size), *times, _gb(weights), _gb(peak), f"{peak / weights:.2f}"]


def _conversion_row(file_bytes: int, num_runs: int) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="text-generation-loading-") as name:
        folder = Path(name)
        GeneratedLlama(file_bytes, torch.bfloat16).save_bin(folder)
        size, floors = _size(folder), _floors(folder, num_runs)
        seconds, peak = _convert(folder)
    times = [*_seconds(*floors, seconds), f"{seconds / floors[1]:.1f}"]
    return ["bfloat16, .bin", _gb(size), *times, _gb(peak), f"{peak / size:.2f}"]


def _floors(folder: Path, num_runs: int) -> tuple[float, float]:
    """Seconds to read all bytes through a buffer, and into new memory."""
    buffer = bytearray(CHUNK)
    through = median([_read_seconds(folder, lambda size: buffer) for _ in range(num_runs)])
    return through, median([_read_seconds(folder, lambda size: mmap.mmap(-1, size)) for _ in range(num_runs)])


def _read_seconds(folder: Path, memory_for: Callable[[int], bytearray | mmap.mmap]) -> float:
    start = time.perf_counter()
    for path in folder.iterdir():
        size = path.stat().st_size
        memory = memoryview(memory_for(size))
        with path.open("rb", buffering=0) as file:
            for place in range(0, size, CHUNK):
                here = place % len(memory)
                file.readinto(memory[here : here + CHUNK])
    return time.perf_counter() - start


def _load(folder: Path, dtype: str) -> Load:
    start = time.perf_counter()
    with ShardProcess(folder, ["--dtype", dtype, *SHARD_FLAGS]) as shard:
        ready_seconds = time.perf_counter() - start
        with grpc.insecure_channel(f"unix:{shard.socket_path}") as channel:
            described = shard_pb2_grpc.ShardStub(channel).Describe(shard_pb2.DescribeRequest())
        found = re.search(r"loading_seconds=([\d.]+)", shard.log())
        assert found, shard.log()
        return Load(float(found[1]), ready_seconds, described.peak_loading_bytes)


def _convert(folder: Path) -> tuple[float, int]:
    """Seconds of the whole command, and its highest resident memory. The files are mapped: their pages count."""
    start, peak = time.perf_counter(), 0
    command = [sys.executable, "-m", "text_generation_server", "download-weights", str(folder)]
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(POLL_SECONDS)
    assert process.wait() == 0
    return time.perf_counter() - start, peak


def _seconds(*values: float) -> list[str]:
    return [f"{value:.2f} s" for value in values]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _gb(nbytes: int) -> str:
    return f"{nbytes / GB:.2f} GB"


if __name__ == "__main__":
    main(sys.argv[1:])

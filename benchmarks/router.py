"""What the router alone costs: a core's time for each streamed token and for each short request.

In: nothing but this repository; the shard is a scripted one, which computes nothing. Out: one Markdown table, with a floor
from the same run: the events that a bare asyncio server writes to the same client. With --profile, where the time goes.
"""

import argparse
import asyncio
import dataclasses
import itertools
import os
import pstats
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import tokenizers
from counting_load import CountingLoad
from hardware import heading
from pinned_process import PinnedProcess, can_pin, pinned
from table import markdown, median

HERE = Path(__file__).parent
TOKENIZER_FOLDER = HERE.parent / "models" / "tiny-bloom"
ANSWER_TEXT = " the"  # its last token is what the shard answers with
TITLES = ("what", "per second", "CPU each", "one whole core", "share of its core", "other core")
PROFILED_FUNCTIONS = 30


@dataclasses.dataclass(frozen=True, slots=True)
class Workload:
    name: str
    unit: str
    streamed: bool
    max_new_tokens: int

    def num_done(self, load: CountingLoad) -> int:
        return load.num_tokens if self.streamed else load.num_requests


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """What happened between two looks at the clocks."""

    seconds: float
    num_done: int
    cpu_seconds: float  # of the server that is measured
    other_cpu_seconds: float  # of what stands on the other core: the client, and the shard

    def __sub__(self, earlier: "Window") -> "Window":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(earlier), strict=True)
        return Window(*(now - then for now, then in pairs))


@dataclasses.dataclass(frozen=True, slots=True)
class Cores:
    """The router has one for itself, if there are two."""

    router: int
    load: int

    @classmethod
    def of_machine(cls) -> "Cores":
        cores = sorted(os.sched_getaffinity(0)) if can_pin() else [0]
        return cls(cores[-1], cores[0])

    def __str__(self) -> str:
        if not can_pin():
            return "processes cannot be pinned here: they share all cores"
        return f"the router is pinned to core {self.router}, the scripted shard and the client to core {self.load}"


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Start a router for a scripted shard that answers every step at once, let connections ask without "
        "pause, and print a Markdown table: tokens streamed over /generate_stream, short requests over /generate, and, as "
        "the floor, the same events from a bare asyncio server. 'CPU each' is the server's own processor time for one of "
        "them, which other processes on the machine disturb least; 'one whole core' is its inverse: what a core could do "
        "if the server had it for itself and the client kept up. The router has a core of its own (sched_setaffinity), "
        "client and shard share another one. Medians of some windows."
    )
    parser.add_argument("--connections", type=int, default=64, metavar="N", help="that ask at the same time; default: 64")
    parser.add_argument("--new-tokens", type=int, default=200, metavar="N", help="of a streamed answer; default: 200")
    parser.add_argument("--short-tokens", type=int, default=4, metavar="N", help="of a short answer; default: 4")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="length of a window; default: 10")
    parser.add_argument("--warm-up", type=float, default=3.0, metavar="S", help="before the first window; default: 3")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="windows; default: 3")
    parser.add_argument(
        "--profile", action="store_true", help="run the router under cProfile and print where its time goes, not how much it is"
    )
    parser.add_argument("--quick", action="store_true", help="windows of half a second: does it run at all?")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.seconds, arguments.warm_up = 0.5, 0.5
    return arguments


class Measurement:
    """Starts what a workload needs, and watches it for some windows."""

    def __init__(self, arguments: argparse.Namespace, cores: Cores, folder: Path) -> None:
        self._arguments = arguments
        self._cores = cores
        self._folder = folder

    def router(self, workload: Workload, profile_path: Path | None = None) -> list[Window]:
        port, uds_path = _free_port(), self._folder / workload.unit
        with self._shard(uds_path) as shard, self._router(port, uds_path, profile_path) as router:
            return self._windows(workload, port, router, shard)

    def floor(self, workload: Workload) -> list[Window]:
        port = _free_port()
        command = [str(HERE / "bare_server.py"), "--port", str(port), "--num-events", str(workload.max_new_tokens)]
        with PinnedProcess(self._cores.router, command, lambda: _listens(port)) as server:
            return self._windows(workload, port, server, None)

    def _shard(self, uds_path: Path) -> PinnedProcess:
        program = str(HERE / "scripted_shard.py")
        command = [program, "--shard-uds-path", str(uds_path), "--token-id", str(_answer_token_id())]
        return PinnedProcess(self._cores.load, command, Path(f"{uds_path}-0").exists)

    def _router(self, port: int, uds_path: Path, profile_path: Path | None) -> PinnedProcess:
        profiler = ["-m", "cProfile", "-o", str(profile_path)] if profile_path else []
        flags = {
            "--hostname": "127.0.0.1",
            "--port": str(port),
            "--shard-uds-path": str(uds_path),
            "--tokenizer-path": str(TOKENIZER_FOLDER),
            "--max-concurrent-requests": str(2 * self._arguments.connections),
            "--graceful-termination-timeout": "0",
        }
        words = [word for flag in flags.items() for word in flag]
        command = [*profiler, "-m", "text_generation_router", *words]
        return PinnedProcess(self._cores.router, command, lambda: _is_healthy(port))

    def _windows(
        self, workload: Workload, port: int, server: PinnedProcess, shard: PinnedProcess | None
    ) -> list[Window]:
        with pinned(self._cores.load):
            return asyncio.run(self._watch(workload, port, server, shard))

    async def _watch(
        self, workload: Workload, port: int, server: PinnedProcess, shard: PinnedProcess | None
    ) -> list[Window]:
        def look() -> Window:
            other_cpu_seconds = time.process_time() + (shard.cpu_seconds if shard else 0.0)
            return Window(time.perf_counter(), workload.num_done(load), server.cpu_seconds, other_cpu_seconds)

        load = CountingLoad(
            port,
            streamed=workload.streamed,
            num_connections=self._arguments.connections,
            max_new_tokens=workload.max_new_tokens,
        )
        async with load:
            await asyncio.sleep(self._arguments.warm_up)
            looks = [look()]
            for _ in range(self._arguments.repeats):
                load.check()
                await asyncio.sleep(self._arguments.seconds)
                looks.append(look())
            load.check()
        return [later - earlier for earlier, later in itertools.pairwise(looks)]


def report(arguments: argparse.Namespace, cores: Cores, rows: dict[str, list[Window]], machine: str) -> str:
    what = (
        f"{arguments.connections} connections, answers of {arguments.new_tokens} streamed or {arguments.short_tokens} whole "
        f"tokens; medians of {arguments.repeats} windows of {arguments.seconds:g} s; {cores}."
    )
    table = markdown(TITLES, [[name, *_cells(windows)] for name, windows in rows.items()])
    return "\n".join([machine, "", what, "", table, ""])


def _cells(windows: list[Window]) -> Iterator[str]:
    cpu_seconds = median([window.cpu_seconds / max(1, window.num_done) for window in windows])
    yield f"{median([window.num_done / window.seconds for window in windows]):,.0f}"
    yield f"{cpu_seconds * 1e6:.1f} µs"
    yield f"{1 / cpu_seconds:,.0f}/s" if cpu_seconds else "-"
    yield f"{median([window.cpu_seconds / window.seconds for window in windows]):.0%}"
    yield f"{median([window.other_cpu_seconds / window.seconds for window in windows]):.0%}"


def print_profile(measurement: Measurement, workload: Workload, path: Path) -> None:
    measurement.router(workload, path)
    print(f"## {workload.name}\n")
    pstats.Stats(str(path)).strip_dirs().sort_stats("tottime").print_stats(PROFILED_FUNCTIONS)


def _answer_token_id() -> int:
    token_ids: list[int] = tokenizers.Tokenizer.from_file(str(TOKENIZER_FOLDER / "tokenizer.json")).encode(ANSWER_TEXT).ids
    return token_ids[-1]


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1.0):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])
    streamed = Workload("streamed tokens", "token", True, arguments.new_tokens)
    short = Workload("short requests", "request", False, arguments.short_tokens)
    cores, machine = Cores.of_machine(), heading()
    with tempfile.TemporaryDirectory(prefix="text-generation-benchmark-") as folder:
        measurement = Measurement(arguments, cores, Path(folder))
        if arguments.profile:
            for workload in (streamed, short):
                print_profile(measurement, workload, Path(folder) / "profile")
            return
        rows = {workload.name: measurement.router(workload) for workload in (streamed, short)}
        rows["bare asyncio server, events"] = measurement.floor(streamed)
    print(report(arguments, cores, rows, machine))


if __name__ == "__main__":
    main()

"""PinnedProcess: a child process that keeps to one core, and the processor time that it has taken.

In: a command line, a core. Out: seconds of processor time, its own log where it fails. Where the system cannot pin (it is not
Linux), the process runs wherever it likes, and `can_pin` says so.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

START_SECONDS = 60.0
STOP_SECONDS = 30.0
SHOWN_LOG_LINES = 20


def can_pin() -> bool:
    return hasattr(os, "sched_setaffinity")


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """This thread, and the processes that it starts, on one core."""
    before = os.sched_getaffinity(0) if can_pin() else set()
    if can_pin():
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        if can_pin():
            os.sched_setaffinity(0, before)


class PinnedProcess:
    def __init__(self, core: int, arguments: Sequence[str], is_ready: Callable[[], bool]) -> None:
        self._core = core
        self._command = [sys.executable, *arguments]
        self._is_ready = is_ready

    def __enter__(self) -> Self:
        self._log = tempfile.NamedTemporaryFile(prefix="text-generation-benchmark-", suffix=".log")
        with pinned(self._core):
            self._process = subprocess.Popen(self._command, stdout=self._log, stderr=subprocess.STDOUT)
        self._usage = psutil.Process(self._process.pid)
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                lines = Path(self._log.name).read_text(errors="replace").splitlines()[-SHOWN_LOG_LINES:]
                self._stop()
                raise RuntimeError("\n".join([f"{' '.join(self._command)} did not start:", *lines]))
            time.sleep(0.05)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    @property
    def cpu_seconds(self) -> float:
        """Of all of its threads, in the kernel too."""
        times = self._usage.cpu_times()
        return float(times.user + times.system)

    def _stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

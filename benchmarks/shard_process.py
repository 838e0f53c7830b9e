"""ShardProcess: one real shard server as a child process, to see how much memory it holds once its weights are there.

In: a model folder and flags. Out: byte counts of the process. Knows nothing of steps.
"""

import dataclasses
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

START_SECONDS = 600.0
STOP_SECONDS = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    resident_bytes: int
    file_bytes: int  # the part of it that is mapped from files, which the kernel may drop and read again
    unique_bytes: int  # what the machine would get back if the process ended

    @classmethod
    def of(cls, pid: int) -> "Memory":
        info = psutil.Process(pid).memory_full_info()
        return cls(info.rss, info.shared, info.uss)


class BareProcess:
    """A Python that has imported some modules and waits: what a shard holds before it has a model."""

    def __init__(self, *modules: str) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="text-generation-benchmark-")
        self._ready_path = Path(self._temporary.name) / "ready"
        wait = f"open({str(self._ready_path)!r}, 'w').close(); time.sleep({START_SECONDS})"
        self._command = [sys.executable, "-c", f"import time, {', '.join(modules)}; {wait}"]

    def __enter__(self) -> Self:
        log_path = Path(self._temporary.name) / "log"
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_SECONDS
        while not self._ready_path.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                text = log_path.read_text(errors="replace")
                self._stop()
                raise RuntimeError(f"the process did not start:\n{text}")
            time.sleep(0.1)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def memory(self) -> Memory:
        return Memory.of(self._process.pid)

    def log(self) -> str:
        return (Path(self._temporary.name) / "log").read_text(errors="replace")

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._temporary.cleanup()


class ShardProcess(BareProcess):
    """It is ready when its socket is there: then it has loaded."""

    def __init__(self, folder: Path, arguments: Sequence[str] = ()) -> None:
        super().__init__()
        self.socket_path = self._ready_path = Path(self._temporary.name) / "shard-0"
        serve = ["-m", "text_generation_server", "serve", str(folder), "--shard-uds-path", f"{self._temporary.name}/shard"]
        self._command = [sys.executable, *serve, *arguments]

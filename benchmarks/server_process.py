"""ServerProcess: any server with a /health, as a child process in a process group of its own, while a `with` block lasts.

In: a command line, and environment variables where this process's own environment says nothing. Out: a URL, when the process
began and how long it took to be healthy. All that it logs goes to a file, shown where the start fails.
"""

import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

START_SECONDS = 600.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.05
SHOWN_LOG_LINES = 20


class ServerProcess:
    def __init__(self, command: Sequence[str], port: int, environment: Mapping[str, str] | None = None) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.start_seconds = 0.0  # on perf_counter's clock, once it has begun
        self.answering_seconds = 0.0  # from there, until it answered at all
        self.healthy_seconds = 0.0  # from there
        self._temporary = tempfile.TemporaryDirectory(prefix="text-generation-benchmark-")
        self.log = Path(self._temporary.name) / "log"
        self._command = command
        self._environment = {**(environment or {}), **os.environ}  # a shell can try other values

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self.start_seconds = time.perf_counter()
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            self._wait_until_healthy()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def _wait_until_healthy(self) -> None:
        while not self._is_healthy():
            if self._process.poll() is not None or time.perf_counter() > self.start_seconds + START_SECONDS:
                raise RuntimeError(f"the server did not start:\n{self._last_log_lines()}")
            time.sleep(POLL_SECONDS)
        self.healthy_seconds = time.perf_counter() - self.start_seconds

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=1.0):
                return True
        except urllib.error.HTTPError:
            self.answering_seconds = self.answering_seconds or time.perf_counter() - self.start_seconds
            return False
        except (urllib.error.URLError, OSError):
            return False

    def _last_log_lines(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-SHOWN_LOG_LINES:])

    def _stop(self) -> None:
        """In order; at once when that takes too long. None of its children stays behind."""
        self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._temporary.cleanup()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

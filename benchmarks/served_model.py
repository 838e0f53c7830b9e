"""ServedModel: the real launcher with its router and shards as child processes, for as long as a `with` block lasts.

In: a model folder and launcher flags. Out: a URL, and what rank 0 says of the time its steps took. All that they log goes
to a file, shown where the start fails.
"""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from text_generation_proto import shard_pb2, shard_pb2_grpc

START_SECONDS = 600.0
STOP_SECONDS = 30.0
SHOWN_LOG_LINES = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Timings:
    """What rank 0 did between two looks at its clock."""

    num_steps: int
    step_micros: int
    wait_micros: int

    def __sub__(self, earlier: "Timings") -> "Timings":
        return Timings(
            self.num_steps - earlier.num_steps,
            self.step_micros - earlier.step_micros,
            self.wait_micros - earlier.wait_micros,
        )

    @property
    def step_seconds(self) -> float:
        """The mean."""
        return self.step_micros / 1e6 / max(1, self.num_steps)

    @property
    def wait_share(self) -> float:
        """Time in which sequences could have gone on but no step was there, as a share of the steps' time."""
        return self.wait_micros / max(1, self.step_micros)


class ServedModel:
    def __init__(self, folder: Path, launcher_arguments: Sequence[str]) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="text-generation-benchmark-")
        self._uds_path = f"{self._temporary.name}/shard"
        self._log = Path(self._temporary.name) / "log"
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        flags = {
            "--model-id": str(folder),
            "--hostname": "127.0.0.1",
            "--port": str(port),
            "--master-port": str(_free_port()),
            "--shard-uds-path": self._uds_path,
        }
        words = [word for flag in flags.items() for word in flag]
        self._command = [sys.executable, "-m", "text_generation_launcher", *words, *launcher_arguments]

    def __enter__(self) -> "ServedModel":
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
        try:
            self._wait_until_ready()
            self._channel = grpc.insecure_channel(f"unix:{self._uds_path}-0")
            self._stub = shard_pb2_grpc.ShardStub(self._channel)  # type: ignore[no-untyped-call]
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._channel.close()
        self._stop()

    def info(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/info") as response:
            info: dict[str, Any] = json.load(response)
            return info

    def timings(self) -> Timings:
        sums = self._stub.Describe(shard_pb2.DescribeRequest()).timings
        return Timings(sums.num_steps, sums.step_micros, sums.wait_micros)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._is_healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start:\n{self._last_log_lines()}")
            time.sleep(0.1)

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=1.0):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def _last_log_lines(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-SHOWN_LOG_LINES:])

    def _stop(self) -> None:
        """In order; at once when that takes too long: the children notice that their launcher is gone."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._temporary.cleanup()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

"""The whole server as a child process: the real launcher with its router and shards, for tests that speak HTTP to it."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any

from shard_processes import free_port

START_SECONDS = 120.0


class Served:
    """Started by `with`; ended by SIGTERM, and the launcher's exit status is then in `returncode`."""

    def __init__(self, model: Path, sockets: Path, *arguments: str) -> None:
        self.port = free_port()
        self.sockets = sockets
        self.command = [sys.executable, "-m", "text_generation_launcher", "--model-id", str(model), *arguments]
        self.command += ["--port", str(self.port), "--hostname", "127.0.0.1", "--num-threads", "1"]
        self.command += ["--shard-uds-path", str(sockets / "shard"), "--master-port", str(free_port())]
        self.process: subprocess.Popen[bytes]
        self.returncode: int | None = None

    def __enter__(self) -> "Served":
        self.process = subprocess.Popen(self.command)
        deadline = time.monotonic() + START_SECONDS
        while self.health() != 200:
            assert self.process.poll() is None, "the launcher ended while it started"
            assert time.monotonic() < deadline, "the server did not start in time"
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.returncode = self.process.wait(30)

    def health(self) -> int | None:
        """The status of /health; None while nothing listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=10) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """→ status and decoded JSON."""
        try:
            with self._open(path, body) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def stream(self, inputs: str, **parameters: Any) -> Generator[dict[str, Any], None, None]:
        with self._open("/generate_stream", {"inputs": inputs, "parameters": parameters}) as response:
            for line in response:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])

    def generate(self, inputs: str, **parameters: Any) -> str:
        status, answer = self.post("/generate", {"inputs": inputs, "parameters": parameters})
        assert status == 200, answer
        return str(answer["generated_text"])

    def children(self) -> dict[str, list[int]]:
        """Process ids of the launcher's children, by the module that they run (Linux)."""
        found: dict[str, list[int]] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                words = (folder / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if parent == self.process.pid and "-m" in words:
                found.setdefault(words[words.index("-m") + 1], []).append(int(folder.name))
        return found

    def _open(self, path: str, body: Any) -> Any:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data), timeout=60)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids: list[int], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still running: {[pid for pid in pids if is_running(pid)]}"
        time.sleep(0.05)


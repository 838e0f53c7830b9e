"""Real shard servers as child processes, for tests that drive them over their sockets."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

START_SECONDS = 120.0


class ShardProcesses:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._num_groups = 0

    def __enter__(self) -> "ShardProcesses":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()

    def start(self, model: Path, world_size: int = 1, *arguments: str) -> str:
        """Starts one group, waits until it listens, and returns its socket prefix."""
        uds_path = str(self._folder / f"group-{self._num_groups}")
        self._num_groups += 1
        port = free_port()
        group = [self._serve(model, rank, world_size, uds_path, port, arguments) for rank in range(world_size)]
        deadline = time.monotonic() + START_SECONDS
        while not all(os.path.exists(f"{uds_path}-{rank}") for rank in range(world_size)):
            assert time.monotonic() < deadline, "the shards did not start in time"
            assert all(process.poll() is None for process in group), "a shard ended while it started"
            time.sleep(0.05)
        return uds_path

    def _serve(
        self, model: Path, rank: int, world_size: int, uds_path: str, port: int, arguments: tuple[str, ...]
    ) -> subprocess.Popen[bytes]:
        ranks = ["--rank", str(rank), "--world-size", str(world_size), "--master-port", str(port), "--num-threads", "1"]
        command = [sys.executable, "-m", "text_generation_server", "serve", str(model), "--shard-uds-path", uds_path]
        process = subprocess.Popen([*command, *ranks, *arguments])
        self._processes.append(process)
        return process


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

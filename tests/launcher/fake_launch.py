"""A launcher whose shards, router and download are `fake_child.py`: on a thread, or as a process of its own.

Run as a program: `fake_launch.py FOLDER SHARD_BEHAVIOUR ROUTER_BEHAVIOUR`.
"""

import dataclasses
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from text_generation_launcher.__main__ import run_until_signal
from text_generation_launcher.config import LauncherConfig
from text_generation_launcher.launch import Commands, Launch
from text_generation_proto import logs

FAKE_CHILD = Path(__file__).with_name("fake_child.py")
WORLD_SIZE = 2
LAUNCH_LOG = logging.getLogger("text_generation_launcher.launch")


@dataclasses.dataclass
class FakeLaunch:
    """Behaviours may change while it runs: they count for the children started from then on."""

    folder: Path
    shard: str = "serve"
    router: str = "serve"
    download: str = "fetch"
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    status: int | None = None
    messages: list[str] = dataclasses.field(default_factory=list)  # what the launcher logged

    def build(self) -> Launch:
        (self.folder / "config.json").touch()
        settings = {
            "model_id": str(self.folder),
            "hostname": "127.0.0.1",
            "port": free_port(),
            "shard_uds_path": str(self.folder / "s"),
            "graceful_termination_timeout": 10.0,
        }
        config = LauncherConfig(**settings | self.overrides)
        commands = Commands(
            download=lambda config: self._command("download", self.download),
            shard=lambda shard: self._command(f"shard-{shard.rank}", self.shard, shard.socket_path),
            router=lambda router: self._command("router", self.router),
        )
        return Launch(config, WORLD_SIZE, [], os.environ, commands)

    def __enter__(self) -> "FakeLaunch":
        self.launch = self.build()
        self.log_handler = _Collector(self.messages)
        LAUNCH_LOG.setLevel(logging.INFO)
        LAUNCH_LOG.addHandler(self.log_handler)
        # This thread outlives its children, as the main thread of a real launcher does: they die with it.
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.launch.request_stop()
        self.wait()
        LAUNCH_LOG.removeHandler(self.log_handler)

    def wait(self) -> int | None:
        self.thread.join(30)
        return self.status

    def wait_until_up(self, num_times: int = 1) -> None:
        wait_until(lambda: sum("shards are up" in message for message in self.messages) == num_times)
        wait_until(lambda: bool(self.pids("router")))

    @property
    def launch_status(self) -> dict[str, str | bool | None] | None:
        """What the launcher tells the router; None where there is no such file."""
        file = self.folder / "s-status"
        return json.loads(file.read_text()) if file.exists() else None

    def wait_for_status(self, stage: str, model_path: Path | None) -> None:
        expected = {"stage": stage, "model_path": None if model_path is None else str(model_path), "is_over": False}
        wait_until(lambda: self.launch_status == expected)

    @property
    def sockets(self) -> list[Path]:
        return [self.folder / f"s-{rank}" for rank in range(WORLD_SIZE)]

    def pids(self, name: str) -> list[int]:
        """Of every child of that name so far, the running one last."""
        file = self.folder / f"{name}.pids"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def left_behind(self) -> list[str]:
        files = [str(path) for path in self.folder.glob("s-*")]
        pids = [pid for file in self.folder.glob("*.pids") for pid in self.pids(file.stem)]
        return files + [str(pid) for pid in pids if is_alive(pid)]

    def _run(self) -> None:
        self.status = self.launch.run()

    def _command(self, name: str, behaviour: str, *socket_paths: str) -> list[str]:
        return [sys.executable, "-S", str(FAKE_CHILD), str(self.folder / f"{name}.pids"), behaviour, *socket_paths]


class _Collector(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__()
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_alive(pid: int) -> bool:
    """Where nobody reaps orphans, a dead one stays on as a zombie."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.02)


if __name__ == "__main__":
    logs.configure("launcher", json_output=False)
    sys.exit(run_until_signal(FakeLaunch(Path(sys.argv[1]), sys.argv[2], sys.argv[3]).build()))

"""ServedModel: the real launcher with its router and shards as child processes, for as long as a `with` block lasts.

In: a model folder and launcher flags. Out: a URL, and what rank 0 says of the time its steps took.
"""

import dataclasses
import json
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from server_process import ServerProcess, free_port

from text_generation_proto import shard_pb2, shard_pb2_grpc


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


class ServedModel(ServerProcess):
    def __init__(self, folder: Path, launcher_arguments: Sequence[str]) -> None:
        self._sockets = tempfile.TemporaryDirectory(prefix="text-generation-benchmark-")
        self._uds_path = f"{self._sockets.name}/shard"
        port = free_port()
        flags = {
            "--model-id": str(folder),
            "--hostname": "127.0.0.1",
            "--port": str(port),
            "--master-port": str(free_port()),
            "--shard-uds-path": self._uds_path,
        }
        words = [word for flag in flags.items() for word in flag]
        super().__init__([sys.executable, "-m", "text_generation_launcher", *words, *launcher_arguments], port)

    def __enter__(self) -> Self:
        super().__enter__()
        self._channel = grpc.insecure_channel(f"unix:{self._uds_path}-0")
        self._stub = shard_pb2_grpc.ShardStub(self._channel)  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._channel.close()
        super().__exit__(kind, error, trace)
        self._sockets.cleanup()

    def info(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/info") as response:
            info: dict[str, Any] = json.load(response)
            return info

    def timings(self) -> Timings:
        sums = self._stub.Describe(shard_pb2.DescribeRequest()).timings
        return Timings(sums.num_steps, sums.step_micros, sums.wait_micros)

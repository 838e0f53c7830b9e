"""Real shard servers that start within a second: forked from a process that has the libraries imported, and not run yet.

The same program as `text-generation-server serve`, its command line and its sockets included.
"""

import multiprocessing
import os
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import grpc

from shard_processes import free_port
from text_generation_proto import shard_pb2_grpc

START_SECONDS = 60.0
# Nothing with threads may be among them: gRPC and Gloo come after the fork.
PRELOADED = [
    "bitsandbytes",
    "transformers.generation",
    "text_generation_server.runner",
    "text_generation_server.models.transformers_decoder",
    "text_generation_server.models.fallback",
    "text_generation_server.models.recompute",
    "text_generation_server.models.seq2seq",
]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(PRELOADED)


class ShardsEnded(Exception):
    """They ended before they listened; with what they said."""


class QuickShards:
    """One model's shards, as a context."""

    def __init__(self, model: Path, folder: Path, world_size: int, *arguments: str) -> None:
        """Sockets and logs go to `folder`, whose name must be short."""
        self.world_size = world_size
        self._folder = folder
        self._prefix = str(folder / "shard")
        port = free_port()
        shared = ["--world-size", str(world_size), "--master-port", str(port), "--num-threads", "1"]
        shared += [str(model), "--shard-uds-path", self._prefix, "--dtype", "float32", "--kv-cache-gib", "0.05", *arguments]
        self._ranks: list[BaseProcess] = [
            CONTEXT.Process(target=_serve, args=([*shared, "--rank", str(rank)], self._log(rank)), daemon=True)
            for rank in range(world_size)
        ]

    def __enter__(self) -> list[shard_pb2_grpc.ShardStub]:
        """
        Raises:
            ShardsEnded: with the last line that one of them logged.
        """
        for process in self._ranks:
            process.start()
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        self._channels = [grpc.insecure_channel(f"unix:{self._prefix}-{rank}") for rank in range(self.world_size)]
        return [shard_pb2_grpc.ShardStub(channel) for channel in self._channels]  # type: ignore[no-untyped-call]

    def __exit__(self, *_: object) -> None:
        for process in self._ranks:
            process.kill()
        for process in self._ranks:
            process.join()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not all(os.path.exists(f"{self._prefix}-{rank}") for rank in range(self.world_size)):
            for rank, process in enumerate(self._ranks):
                if not process.is_alive():
                    lines = self._log(rank).read_text().splitlines()
                    raise ShardsEnded(next((line for line in reversed(lines) if "Error" in line), lines[-1]))
            if time.monotonic() > deadline:
                raise ShardsEnded("did not listen in time")
            time.sleep(0.02)

    def _log(self, rank: int) -> Path:
        return self._folder / f"log-{rank}"


def _serve(arguments: list[str], log: Path) -> None:
    with log.open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.argv = ["text-generation-server", "serve", *arguments]
    from text_generation_server.__main__ import main

    main()

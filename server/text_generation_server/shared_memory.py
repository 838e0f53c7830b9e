"""SharedMemory: what the ranks of one machine hand each other, through memory that all of them have mapped.

In: a tensor of each rank. Out: all of them, on every rank, a few microseconds later; a socket takes some hundred. Each rank
copies its part to its slot and then raises its flag; the slots are there twice, so that nobody writes where another may still
read: whoever is at call n + 2 has seen all flags of call n + 1, and those were raised after reading n.
Relies on stores being seen in their order, as on x86. Knows nothing of sums, nor of torch.distributed.
"""

import fcntl
import mmap
import os
import platform
import tempfile
import time
from pathlib import Path

import torch

from text_generation_server.errors import ShardLost

MEMORY_FOLDER = Path("/dev/shm")  # where Linux has files in memory
SLOT_BYTES = 2**20
FLAG_BYTES = 64  # a cache line each: ranks that wait do not slow down one that writes
SIZE_BITS = 21  # for sizes up to SLOT_BYTES, which leaves 42 to count calls: enough for centuries
SPINS = 2000  # about 0.1 ms; then other threads of this process have their turn at each look
NAP_AFTER_SECONDS = 0.005
NAP_SECONDS = 0.0001
CHECK_SECONDS = 0.2  # how often whoever waits looks whether the other still lives


class SharedMemory:
    """Every method must be called by all ranks in the same order, with tensors of the same size."""

    def __init__(self, path: str, rank: int, world_size: int, timeout_seconds: float) -> None:
        """Maps `path`, which all ranks do before the first call.

        Raises:
            OSError: it is not there.
        """
        self.rank = rank
        self.world_size = world_size
        self.timeout_seconds = timeout_seconds
        self._file = open(path, "r+b", buffering=0)  # noqa: SIM115  # open as long as this lives, for its lock
        # The system takes the lock back when this rank dies, however it does.
        fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)
        memory = mmap.mmap(self._file.fileno(), 0)
        self._flags = memoryview(memory)[: world_size * FLAG_BYTES].cast("q")
        slots = torch.frombuffer(memory, dtype=torch.uint8, offset=world_size * FLAG_BYTES)
        self._slots = slots.view(2, world_size, SLOT_BYTES)
        self._num_calls = 0

    @staticmethod
    def create(world_size: int) -> str:
        """A file for so many ranks, its memory taken. Whoever creates it removes it once all have mapped it.

        Raises:
            OSError: there is no such memory, or not enough.
        """
        if platform.machine() not in ("x86_64", "AMD64"):
            raise OSError(f"stores may be seen out of order on {platform.machine()}")
        descriptor, path = tempfile.mkstemp(prefix="text-generation-", dir=MEMORY_FOLDER)
        try:
            os.posix_fallocate(descriptor, 0, world_size * (FLAG_BYTES + 2 * SLOT_BYTES))
        except OSError:
            os.unlink(path)
            raise
        finally:
            os.close(descriptor)
        return path

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """tensor [n], of at most SLOT_BYTES → [world_size, n], whose memory the call after the next one overwrites.

        Raises:
            ShardLost: a rank died, waits elsewhere, or did not come in time.
        """
        self._num_calls += 1
        slots = self._slots[self._num_calls % 2, :, : tensor.nbytes].view(tensor.dtype)
        slots[self.rank].copy_(tensor)
        flag = self._num_calls << SIZE_BITS | tensor.nbytes
        self._flags[self.rank * FLAG_BYTES // 8] = flag
        for rank in range(self.world_size):
            self._wait(rank, flag)
        return slots

    def _wait(self, rank: int, flag: int) -> None:
        """Until that rank's flag is as far, or further: then it has seen ours."""
        flags, place = self._flags, rank * FLAG_BYTES // 8
        for _ in range(SPINS):
            if flags[place] >> SIZE_BITS >= flag >> SIZE_BITS:
                break
        else:
            self._wait_long(rank, flag)
        seen = flags[place]
        if seen >> SIZE_BITS == flag >> SIZE_BITS and seen != flag:
            raise ShardLost(f"rank {rank} is out of step")

    def _wait_long(self, rank: int, flag: int) -> None:
        start_seconds = check_seconds = time.monotonic()
        while self._flags[rank * FLAG_BYTES // 8] >> SIZE_BITS < flag >> SIZE_BITS:
            now = time.monotonic()
            if now - check_seconds > CHECK_SECONDS:
                check_seconds = now
                self._check_alive(rank)
            if now - start_seconds > self.timeout_seconds:
                raise ShardLost(f"lost the other ranks: rank {rank} did not come within {self.timeout_seconds:g} s")
            time.sleep(NAP_SECONDS if now - start_seconds > NAP_AFTER_SECONDS else 0)

    def _check_alive(self, rank: int) -> None:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)
        except OSError:
            return
        raise ShardLost(f"lost the other ranks: rank {rank} is gone")

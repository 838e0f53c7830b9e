"""MemoryReader: how long the device takes to read some bytes, which no decode step can be faster than.

In: a number of bytes. Out: seconds. The buffer is as large as what it stands for (up to a limit): weights that fit into a
processor's cache are held to the speed of that cache, not to that of the memory behind it. On machines that are shared, memory
is at times twice as fast as at others: what is compared with it has to be timed in between.
"""

import time
from collections.abc import Callable

import torch
from table import median

from text_generation_server import pages

MAX_BUFFER_BYTES = 2**30
ROW = 4096  # columns of the matrix that is read
NUM_READS = 5
MIN_SECONDS = 0.05


class MemoryReader:
    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self.num_bytes = num_bytes
        self.device = device
        shape = (max(1, min(num_bytes, MAX_BUFFER_BYTES) // (4 * ROW)), ROW)
        self.buffer = pages.large(shape, torch.float32) if device.type == "cpu" else torch.empty(shape, device=device)
        self.buffer.fill_(1)
        self.vector = torch.ones(ROW, device=device)

    def read_seconds(self) -> float:
        """With the threads that torch uses, by a sum or by a matrix-vector product, whichever is faster; a median of some."""
        fastest = min(self._median(lambda: self.buffer.sum()), self._median(lambda: torch.mv(self.buffer, self.vector)))
        return fastest * self.num_bytes / self.buffer.nbytes

    def _median(self, read: Callable[[], torch.Tensor]) -> float:
        seconds: list[float] = []
        while len(seconds) < NUM_READS or sum(seconds) < MIN_SECONDS:
            start_seconds = time.perf_counter()
            read()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds.append(time.perf_counter() - start_seconds)
        return median(seconds)

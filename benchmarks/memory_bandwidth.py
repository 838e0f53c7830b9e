"""Memory bandwidth: how long the device takes to read some bytes, which no decode step can be faster than.

In: a number of bytes. Out: seconds. The buffer is as large as what it stands for (up to a limit): weights that fit into a
processor's cache are held to the speed of that cache, not to that of the memory behind it.
"""

import time
from collections.abc import Callable

import torch

MAX_BUFFER_BYTES = 2**30
ROW = 4096  # columns of the matrix that is read
MIN_READS = 10
MIN_SECONDS = 0.5


def read_seconds(num_bytes: int, device: torch.device) -> float:
    """The fastest of many reads with the threads that torch uses, by a sum or by a matrix-vector product."""
    num_rows = max(1, min(num_bytes, MAX_BUFFER_BYTES) // (4 * ROW))
    buffer = torch.ones(num_rows, ROW, device=device)
    vector = torch.ones(ROW, device=device)
    fastest = min(_fastest(lambda: buffer.sum(), device), _fastest(lambda: torch.mv(buffer, vector), device))
    return fastest * num_bytes / buffer.nbytes


def _fastest(read: Callable[[], torch.Tensor], device: torch.device) -> float:
    seconds: list[float] = []
    while len(seconds) < MIN_READS or sum(seconds) < MIN_SECONDS:
        start_seconds = time.perf_counter()
        read()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start_seconds)
    return min(seconds)

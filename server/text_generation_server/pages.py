"""Pages: memory that a CPU takes from the system itself, in large pages.

In: a shape and a type. Out: a tensor of zeros, which takes no memory until it is written.
"""

import contextlib
import math
import mmap

import torch


def large(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """In pages of 2 MB where the system has them, for what is written once and read all the time. Each small page has to be
    looked up on its way from memory, and with it end the processor's guesses at what is read next."""
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes == 0:
        return torch.zeros(shape, dtype=dtype)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError, AttributeError):  # a system without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)

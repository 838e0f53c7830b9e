"""Pages: memory that a CPU takes from the system itself, in large pages or small ones.

In: a shape and a type. Out: a tensor of zeros, which takes no memory until it is written.
"""

import contextlib
import math
import mmap

import torch


def large(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """In pages of 2 MB where the system has them, for what is written once and read all the time. Each small page has to be
    looked up on its way from memory, and with it end the processor's guesses at what is read next."""
    return _zeros(shape, dtype, "MADV_HUGEPAGE")


def small(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """In small pages, for what is written by and by: the system takes milliseconds to get a large one ready, and of many
    tensors that come to their next one together a step would wait for all."""
    return _zeros(shape, dtype, "MADV_NOHUGEPAGE")


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, advice: str) -> torch.Tensor:
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes == 0:
        return torch.zeros(shape, dtype=dtype)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, advice):
        with contextlib.suppress(OSError):  # a kernel without large pages
            memory.madvise(getattr(mmap, advice))
    return torch.frombuffer(memory, dtype=dtype).view(shape)

"""Large pages: memory of a CPU that is read all the time, in pages of 2 MB where the system has them.

In: shapes and a type. Out: tensors of zeros, which take no memory until they are written. Each small page has to be looked up
on its way from memory, and with it end the processor's guesses at what is read next.
"""

import contextlib
import math
import mmap
from collections.abc import Sequence

import torch

PAGE = 2 * 2**20
LINE = 64  # bytes that a processor reads at once


def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return zeros_apart([shape], dtype)[0]


def zeros_apart(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> list[torch.Tensor]:
    """Tensors that begin at different places of their pages. Who writes the same place of all of them comes to a new page of one
    at a time: the system needs up to some milliseconds for each."""
    sizes = [math.prod(shape) * dtype.itemsize for shape in shapes]
    starts, end = [], 0
    for index, size in enumerate(sizes):
        starts.append(end + index * PAGE // len(sizes) // LINE * LINE)
        end = -(-(starts[-1] + size) // PAGE) * PAGE
    memory = _map(end + PAGE)
    first = -memory.data_ptr() % PAGE
    parts = (memory[first + start : first + start + size] for start, size in zip(starts, sizes, strict=True))
    return [part.view(dtype).view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _map(num_bytes: int) -> torch.Tensor:
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)

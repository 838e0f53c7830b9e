"""SymmetricMemory: sums over ranks whose GPUs read each other's memory: each rank adds up all parts itself, in one kernel.

In: a small tensor of each rank. Out: the sum, the same bits on every rank. For what a decode step sums, a few rows of hidden
states, a ring of messages takes longer to go round than the sum to be made. The kernel is PyTorch's own.
"""

import os

import torch
from torch.distributed import ProcessGroup

MAX_BYTES = 256 * 1024  # of more, every rank reads so much from every other one that taking turns is faster
ALIGNMENT = 16  # in bytes
DTYPES = (torch.bfloat16, torch.float32)  # that the kernel adds
# PyTorch takes two GPUs that have the same number for one; the launcher shows each rank its own as number 0.
SAME_NUMBERS_VARIABLE = "TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"


class SymmetricMemory:
    """Every method must be called by all ranks in the same order, with tensors of the same size and type."""

    def __init__(self, group: ProcessGroup, device: torch.device) -> None:
        """
        Raises:
            RuntimeError: these devices do not read each other's memory.
        """
        os.environ.setdefault(SAME_NUMBERS_VARIABLE, "1")
        self._group_name = group.group_name
        self._buffers = {dtype: _shared(MAX_BYTES // dtype.itemsize, dtype, device, group) for dtype in DTYPES}

    def takes(self, tensor: torch.Tensor) -> bool:
        return tensor.dtype in DTYPES and 0 < tensor.nbytes <= MAX_BYTES and tensor.nbytes % ALIGNMENT == 0

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum, in a tensor of its own; `tensor` is contiguous and one that `takes` takes."""
        part = tensor.view(-1)
        buffer = self._buffers[tensor.dtype][: len(part)]
        total: torch.Tensor = torch.ops.symm_mem.one_shot_all_reduce_copy_out(
            buffer, part, "sum", self._group_name, torch.empty_like(part)
        )
        return total.view_as(tensor)


def _shared(size: int, dtype: torch.dtype, device: torch.device, group: ProcessGroup) -> torch.Tensor:
    import torch.distributed._symmetric_memory as symmetric_memory  # takes a moment that most servers have no use for

    buffer: torch.Tensor = symmetric_memory.empty(size, dtype=dtype, device=device)
    symmetric_memory.rendezvous(buffer, group)
    return buffer

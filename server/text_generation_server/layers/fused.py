"""A residual sum and the layer norm of it as one Triton kernel: the sum is written, and not read again to be normed.

In: contiguous tensors of one type, rows of hidden states first. Out: new tensors. Arithmetic is float32.
"""

import torch
import triton
import triton.language as tl

MAX_WARPS = 16
NUMBERS_PER_WARP = 1024  # of a row that is normed


def add_and_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + residual, and the layer norm of it (Ba et al. 2016, arXiv:1607.06450): x and residual [num_rows, size], weight and
    bias [size]. What is normed is the sum as it is returned, rounded to its type, as if the two came one after the other."""
    total, normed, (num_rows, size) = torch.empty_like(x), torch.empty_like(x), x.shape
    tile = triton.next_power_of_2(size)
    num_warps = max(1, min(MAX_WARPS, tile // NUMBERS_PER_WARP))
    norm_kernel[(num_rows,)](total, normed, x, residual, weight, bias, size, epsilon, tile, num_warps=num_warps)
    return total, normed


@triton.jit
def norm_kernel(
    total: tl.tensor,
    normed: tl.tensor,
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    size: int,
    epsilon: float,
    TILE: tl.constexpr,
) -> None:
    """One row a program."""
    column = tl.arange(0, TILE)
    is_column = column < size
    place = tl.program_id(0).to(tl.int64) * size + column
    a = tl.load(x + place, mask=is_column, other=0.0).to(tl.float32)
    a = (a + tl.load(residual + place, mask=is_column, other=0.0).to(tl.float32)).to(total.dtype.element_ty)
    tl.store(total + place, a, mask=is_column)
    a = a.to(tl.float32)
    centered = tl.where(is_column, a - tl.sum(a, 0) / size, 0.0)
    deviation = tl.sqrt(tl.sum(centered * centered, 0) / size + epsilon)
    w, b = tl.load(weight + column, mask=is_column).to(tl.float32), tl.load(bias + column, mask=is_column).to(tl.float32)
    tl.store(normed + place, centered / deviation * w + b, mask=is_column)

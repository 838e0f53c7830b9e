"""Blocked: matrices on a CPU in the order in which our kernels multiply them, in as few bytes as their numbers need.

In: a weight of any type. Out: a module that multiplies by it, in one call with the norm before and the activation after. Where
float32 weights are the same in 16 bits, as most are published, half the bytes are read for the same products.
"""

import ctypes
import enum
import math

import torch

from text_generation_server import cpu_kernels, pages
from text_generation_server.layers.activation import Activation

BLOCK = 16  # outputs
ROWS_AT_ONCE = 4096  # of a weight, while it is looked at or put in order: copies stay small
LEVELS = 127
TINY = 1e-30  # instead of the scale of a row of zeros


class Kind(enum.IntEnum):
    """How weights are stored; inputs are float32 if nothing else is said. As in server/kernels/linear.c."""

    FLOAT32 = 0
    FLOAT16 = 1
    BFLOAT16 = 2
    BFLOAT16_UNITS = 3  # inputs are rounded to bfloat16
    INT8 = 4  # and inputs in 8 bits, each row of both in a scale of its own
    INT8_TWO_DIGITS = 5  # inputs in two digits of 8 bits


DTYPES = {
    Kind.FLOAT32: torch.float32,
    Kind.FLOAT16: torch.float16,
    Kind.BFLOAT16: torch.bfloat16,
    Kind.BFLOAT16_UNITS: torch.bfloat16,
    Kind.INT8: torch.int8,
    Kind.INT8_TWO_DIGITS: torch.int8,
}


def kind_of(weight: torch.Tensor, quantize: str | None, units: bool) -> Kind:
    """`units`: whether bfloat16 weights are multiplied by inputs of their type, in one instruction."""
    if quantize is not None:
        return Kind.INT8 if quantize == "int8-dynamic" else Kind.INT8_TWO_DIGITS
    if weight.dtype == torch.bfloat16:
        return Kind.BFLOAT16_UNITS if units else Kind.BFLOAT16
    if weight.dtype == torch.float16 or is_exact_in(weight, torch.float16):
        return Kind.FLOAT16
    return Kind.BFLOAT16 if is_exact_in(weight, torch.bfloat16) else Kind.FLOAT32


def is_exact_in(weight: torch.Tensor, dtype: torch.dtype) -> bool:
    return all(part.equal(part.to(dtype).to(weight.dtype)) for part in weight.split(max(1, ROWS_AT_ONCE // 16)))


class BlockedLinear(torch.nn.Module):
    """weight [out, in], bias [out]: [..., in] → activation([..., out]) in the input's type. A row's result does not depend on
    what other rows there are."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        kind: Kind,
        activation: Activation,
        library: cpu_kernels.Library,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.in_features = weight.shape[1]
        self.out_features = weight.shape[0] // (2 if activation is Activation.SILU_GATE else 1)
        self.weight_bytes = weight.numel() * DTYPES[kind].itemsize
        self._multiply = library.multiply
        is_gate = activation is Activation.SILU_GATE
        order = _order(weight.shape[0], is_gate)
        bias = None if bias is None else _ordered(bias.float().unsqueeze(1), order).flatten()
        scales = sums = None
        if kind >= Kind.INT8:
            scales = _ordered(_row_scales(weight).unsqueeze(1), order).flatten()
            self.weight_bytes += len(weight) * torch.float32.itemsize
        blocks, sums = _in_blocks(weight, order, kind, library.inputs_together(kind), scales)
        self._tensors = (blocks, bias, scales, sums)  # the struct has their addresses
        sizes = kind, activation, self.in_features, len(order), self.out_features
        self._matrix = cpu_kernels.Matrix(*sizes, *map(cpu_kernels.address, self._tensors))
        self.address = ctypes.addressof(self._matrix)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"a matrix of {self.in_features} inputs was given {x.shape[-1]}")
        rows = x if x.dim() == 2 else x.flatten(0, -2)
        if rows.dtype != torch.float32 or rows.stride(1) != 1:
            rows = rows.float().contiguous()
        output = self.multiply(rows)
        if x.dtype != torch.float32:
            output = output.to(x.dtype)
        return output if x.dim() == 2 else output.unflatten(0, x.shape[:-1])

    def multiply(self, x: torch.Tensor, norm: int | None = None, update: torch.Tensor | None = None) -> torch.Tensor:
        """x [num_rows, in] float32 → [num_rows, out]. `update` [num_rows, in] is added to x, in place, before; `norm` is the
        address of a cpu_kernels.Norm that is applied next."""
        num_rows = x.shape[0]
        output = torch.empty(num_rows, self.out_features, dtype=torch.float32)
        changes = None if update is None else update.data_ptr()
        self._multiply(self.address, norm, x.data_ptr(), x.stride(0), changes, output.data_ptr(), num_rows)
        return output


def _order(num_rows: int, is_gate: bool) -> torch.Tensor:
    """[num_outputs], whole blocks: which row of a weight is where, -1 for none. Of gates and what they let through, which are
    one half each of the weight's rows, the blocks take turns."""
    num_parts = 2 if is_gate else 1
    size = num_rows // num_parts
    padded = torch.full((num_parts, math.ceil(size / BLOCK) * BLOCK), -1)
    padded[:, :size] = torch.arange(num_rows).view(num_parts, size)
    return padded.view(num_parts, -1, BLOCK).transpose(0, 1).flatten()


def _ordered(rows: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Zeros where there is none."""
    return rows[order.clamp(min=0)].masked_fill_((order < 0).unsqueeze(1), 0)


def _row_scales(weight: torch.Tensor) -> torch.Tensor:
    largest = [part.abs().amax(dim=1).float() for part in weight.split(ROWS_AT_ONCE)]
    return torch.cat(largest).clamp_(min=TINY) / LEVELS


def _in_blocks(
    weight: torch.Tensor, order: torch.Tensor, kind: Kind, together: int, scales: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """[outputs / 16, inputs / together, 16, together], and of int8 the sum of each output's weights."""
    num_steps = math.ceil(weight.shape[1] / together)
    blocks = pages.large((len(order) // BLOCK, num_steps, BLOCK, together), DTYPES[kind])
    sums = torch.zeros(len(order), dtype=torch.int32) if scales is not None else None
    for start in range(0, len(order), ROWS_AT_ONCE):
        own = slice(start, start + ROWS_AT_ONCE)
        rows = _ordered(weight, order[own])
        if scales is not None and sums is not None:
            own_scales = scales[own].where(order[own] >= 0, 1.0)
            rows = (rows.float() / own_scales.unsqueeze(1)).round_().to(torch.int8)
            sums[own] = rows.sum(dim=1, dtype=torch.int32)
        padding = num_steps * together - weight.shape[1]
        rows = torch.nn.functional.pad(rows.to(DTYPES[kind]), (0, padding))
        blocks[start // BLOCK : start // BLOCK + len(rows) // BLOCK] = rows.view(-1, BLOCK, num_steps, together).transpose(1, 2)
    return blocks, sums

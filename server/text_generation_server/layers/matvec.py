"""A few rows times a quantized matrix, as Triton kernels: weights are read once, in bitsandbytes' own formats.

In: up to 16 rows, as decoding has them, a matrix in 8 or 4 bits with its scales, maybe a bias. Out: the product. Between
memory and the sum there is no dequantized matrix; sums are float32. What bitsandbytes does with more rows, this does not.
"""

import torch
import triton
import triton.language as tl

ROWS = 16  # the least that tensor cores multiply
OUT_TILE = 32
IN_TILE = 128
BLOCKS = 4  # in 4 bits: as many weights as IN_TILE has bytes


def multiply_int8(
    x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """x [..., in_features], weight [out_features, in_features] int8 in units of scales [out_features] / 127, bias
    [out_features] → [..., out_features]."""
    x, (out_features, in_features) = x.contiguous(), weight.shape
    output = x.new_empty(*x.shape[:-1], out_features)
    int8_kernel[(triton.cdiv(out_features, OUT_TILE),)](
        output, x, weight, scales, bias, x.numel() // in_features, out_features, in_features, ROWS, OUT_TILE, IN_TILE
    )
    return output


def multiply_4bit(
    x: torch.Tensor,
    packed: torch.Tensor,
    scales: torch.Tensor,
    code: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """x [..., in_features], packed uint8 with two weights of a row each, the first in the high bits, scales [out_features *
    in_features / block_size] float32, code [16]: what a weight's 4 bits stand for, bias [out_features] → [..., out_features].
    A block of weights with one scale does not reach into the next row: block_size divides in_features."""
    x, in_features = x.contiguous(), x.shape[-1]
    out_features, block_size = 2 * packed.numel() // in_features, 2 * packed.numel() // scales.numel()
    output = x.new_empty(*x.shape[:-1], out_features)
    # Codes of 4 bytes would be prefetched one by one; narrower ones are read from the cache, where they all are.
    four_bit_kernel[(triton.cdiv(out_features, OUT_TILE),)](
        output,
        x,
        packed,
        scales,
        code.to(x.dtype),
        bias,
        x.numel() // in_features,
        out_features,
        in_features,
        ROWS,
        OUT_TILE,
        BLOCKS,
        block_size,
    )
    return output


@triton.jit(do_not_specialize=["num_rows"])
def int8_kernel(
    output: tl.tensor,
    x: tl.tensor,
    weight: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,  # or None
    num_rows: int,
    out_features: int,
    in_features: int,
    ROWS: tl.constexpr,
    OUT_TILE: tl.constexpr,
    IN_TILE: tl.constexpr,
) -> None:
    """OUT_TILE columns of the output a program."""
    row, column = tl.arange(0, ROWS), tl.program_id(0) * OUT_TILE + tl.arange(0, OUT_TILE)
    is_row, is_column = row < num_rows, column < out_features
    total = tl.zeros([ROWS, OUT_TILE], tl.float32)
    for start in range(0, in_features, IN_TILE):
        place = start + tl.arange(0, IN_TILE)
        is_place = place < in_features
        part = tl.load(x + row[:, None] * in_features + place, mask=is_row[:, None] & is_place, other=0.0)
        weights = weight + column[:, None].to(tl.int64) * in_features + place
        w = tl.load(weights, mask=is_column[:, None] & is_place, other=0).to(part.dtype)  # whole numbers: exact
        total = tl.dot(part, tl.trans(w), total, input_precision="tf32x3")
    total *= tl.load(scales + column, mask=is_column, other=0.0) / 127
    _store(output, total, bias, row, column, is_row, is_column, out_features)


@triton.jit(do_not_specialize=["num_rows"])
def four_bit_kernel(
    output: tl.tensor,
    x: tl.tensor,
    packed: tl.tensor,
    scales: tl.tensor,
    code: tl.tensor,
    bias: tl.tensor,  # or None
    num_rows: int,
    out_features: int,
    in_features: int,
    ROWS: tl.constexpr,
    OUT_TILE: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
) -> None:
    """OUT_TILE columns of the output a program, BLOCKS blocks of each at a time. The weights at even places and those at odd
    ones are multiplied apart, so that they need not be put in order."""
    HALF: tl.constexpr = BLOCK_SIZE // 2
    row, column = tl.arange(0, ROWS), tl.program_id(0) * OUT_TILE + tl.arange(0, OUT_TILE)
    is_row, is_column = row < num_rows, column < out_features
    num_blocks = in_features // BLOCK_SIZE
    total = tl.zeros([ROWS, OUT_TILE], tl.float32)
    for start in range(0, num_blocks, BLOCKS):
        block = start + tl.arange(0, BLOCKS)
        place = column[:, None].to(tl.int64) * num_blocks + block
        is_place = is_column[:, None] & (block < num_blocks)
        scale = tl.load(scales + place, mask=is_place, other=0.0)[:, :, None]
        byte = tl.load(packed + place[:, :, None] * HALF + tl.arange(0, HALF), mask=is_place[:, :, None], other=0)
        even = start * BLOCK_SIZE + 2 * tl.arange(0, BLOCKS * HALF)
        is_even = is_row[:, None] & (even < in_features)
        for odd in tl.static_range(2):
            part = tl.load(x + row[:, None] * in_features + even + odd, mask=is_even, other=0.0)
            w = tl.load(code + ((byte >> (4 - 4 * odd)) & 15)) * scale
            w = tl.reshape(w.to(part.dtype), [OUT_TILE, BLOCKS * HALF])
            total = tl.dot(part, tl.trans(w), total, input_precision="tf32x3")
    _store(output, total, bias, row, column, is_row, is_column, out_features)


@triton.jit
def _store(
    output: tl.tensor,
    total: tl.tensor,
    bias: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    is_row: tl.tensor,
    is_column: tl.tensor,
    out_features: int,
) -> None:
    if bias is not None:
        total += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)
    tl.store(output + row[:, None] * out_features + column, total, mask=is_row[:, None] & is_column)

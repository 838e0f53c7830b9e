"""KVCache: the keys and values of all tokens that are kept, in blocks, one pair of tensors a layer.

In: each layer's shape and a number of blocks. Out: tensors [num_blocks, num_heads_local, block_size, head_dim]: what one
head reads of a block lies together. Which block belongs to whom is the router's business.
"""

import dataclasses
from collections.abc import Sequence

import torch

NARROW_DTYPES = (torch.float16, torch.float8_e4m3fn)  # activations of real models reach their limits


@dataclasses.dataclass(frozen=True, slots=True)
class KVShape:
    """What one layer keeps of a token on this rank. Values need not be as wide as keys."""

    num_heads: int
    key_dim: int
    value_dim: int

    def bytes(self, dtype: torch.dtype) -> int:
        return self.num_heads * (self.key_dim + self.value_dim) * dtype.itemsize


class KVCache:
    def __init__(
        self, shapes: Sequence[KVShape], num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.shapes = shapes
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.dtype = dtype
        self.device = device
        self.keys = [self._zeros(shape.num_heads, shape.key_dim) for shape in shapes]
        self.values = [self._zeros(shape.num_heads, shape.value_dim) for shape in shapes]

    def _zeros(self, num_heads: int, head_dim: int) -> torch.Tensor:
        """Zeros, not empty: a masked slot has weight 0, and 0 times a NaN left in memory would be NaN. On a CPU they are
        written here: no step shall wait for memory, or find that there is none."""
        shape = self.num_blocks, num_heads, self.block_size, head_dim
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def rows(self, slots: torch.Tensor, num_heads: int) -> torch.Tensor:
        """Slots [...] (block_id * block_size + offset) → [..., num_heads]: where each head's vector of a slot is, as a row
        of a layer's tensor seen as [num_blocks * num_heads * block_size, head_dim]."""
        heads = torch.arange(num_heads, device=slots.device)
        blocks, offsets = slots // self.block_size, slots % self.block_size
        return (blocks.unsqueeze(-1) * num_heads + heads) * self.block_size + offsets.unsqueeze(-1)

    def fit(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same in the cache's type. What has overflowed, or would, becomes the largest number there is, and what is no
        number 0: what went wrong in one sequence must not reach the next owner of its blocks."""
        if self.dtype not in NARROW_DTYPES:
            return tensor.to(self.dtype)
        limit = torch.finfo(self.dtype).max
        return tensor.nan_to_num().clamp(-limit, limit).to(self.dtype)

    def write(self, layer: int, rows: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """key, value [num_tokens, num_heads, head_dim] → their `rows` [num_tokens * num_heads]."""
        for blocks, new in ((self.keys[layer], key), (self.values[layer], value)):
            bits(blocks).flatten(0, 2).index_copy_(0, rows, bits(self.fit(new)).flatten(0, 1))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """float8 as bytes: not every operation that moves numbers knows it."""
    return tensor.view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor


def block_bytes(shapes: Sequence[KVShape], block_size: int, dtype: torch.dtype) -> int:
    """What one block costs over all layers, keys and values."""
    return block_size * sum(shape.bytes(dtype) for shape in shapes)

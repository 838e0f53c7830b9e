"""KVCache: the keys and values of all tokens that are kept, in blocks, one pair of tensors a layer.

In: shapes and a memory budget. Out: tensors [num_blocks, num_kv_heads_local, block_size, head_dim]: what one head reads of
a block lies together. Which block belongs to whom is the router's business.
"""

import math

import numpy as np
import torch


class KVCache:
    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_blocks, num_kv_heads, block_size, head_dim)
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.num_kv_heads = num_kv_heads
        self.keys = [_zeros(shape, dtype, device) for _ in range(num_layers)]
        self.values = [_zeros(shape, dtype, device) for _ in range(num_layers)]

    def rows(self, slots: torch.Tensor) -> torch.Tensor:
        """Slots [...] (block_id * block_size + offset) → [..., num_kv_heads]: where each head's vector of a slot is, as a row
        of the cache seen as [num_blocks * num_kv_heads * block_size, head_dim]."""
        heads = torch.arange(self.num_kv_heads, device=slots.device)
        blocks, offsets = slots // self.block_size, slots % self.block_size
        return (blocks.unsqueeze(-1) * self.num_kv_heads + heads) * self.block_size + offsets.unsqueeze(-1)

    def write(self, layer: int, rows: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """key, value [num_tokens, num_kv_heads, head_dim] → their `rows` [num_tokens * num_kv_heads]."""
        if key.dtype == torch.float16:  # what overflowed in one sequence must not reach the next owner of its blocks
            key, value = key.nan_to_num(), value.nan_to_num()
        self.keys[layer].flatten(0, 2).index_copy_(0, rows, key.flatten(0, 1))
        self.values[layer].flatten(0, 2).index_copy_(0, rows, value.flatten(0, 1))


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros, not empty: a masked slot has weight 0, and 0 times a NaN left in memory would be NaN. numpy's pages of zeros
    take no memory on a CPU until they are written."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


def block_bytes(num_layers: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """What one block costs over all layers, keys and values."""
    return 2 * num_layers * block_size * num_kv_heads * head_dim * dtype.itemsize

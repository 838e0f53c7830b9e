"""Paged attention in plain PyTorch: right everywhere, and what CPUs run.

In: queries, keys and values of a packed batch. Out: attended values. Keys and values are written to their blocks. Prompt
chunks gather theirs one by one; decoding sequences do so in one padded call, or not at all where `sparse` can.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from text_generation_server.attention import sparse
from text_generation_server.attention.context import ForwardContext
from text_generation_server.kv_cache import KVCache

# (layer, query, key, value), each [num_tokens, num_heads, head_dim] → [num_tokens, num_heads, head_dim]
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class PagedAttention:
    """ALiBi attention (Press et al. 2021, arXiv:2108.12409) over a block cache; `slopes` [num_heads] are this rank's."""

    def __init__(self, slopes: torch.Tensor, scale: float, cache: KVCache) -> None:
        self.slopes = slopes.float()
        self.scale = scale
        self.cache = cache

    def bind(self, context: ForwardContext, dtype: torch.dtype) -> Attend:
        """Prepares what all layers of one forward share (the biases) and returns the function that they call."""
        written = self.cache.rows(context.slot_mapping).flatten()
        attend_decodes = self._bind_decodes(context, dtype) if context.num_decodes else None
        prefills = [
            (row, self._prefill_bias(context.query_lengths[row], context.context_lengths[row]).to(dtype))
            for row in range(context.num_decodes, len(context.query_lengths))
        ]

        def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            self.cache.write(layer, written, key, value)
            parts = []
            if attend_decodes is not None:
                parts.append(attend_decodes(layer, query[: context.num_decodes]))
            start = context.num_decodes
            for row, bias in prefills:
                table = context.block_tables[row, : _num_blocks(bias, self.cache)]
                parts.append(self._attend_prefill(layer, query[start : start + context.query_lengths[row]], table, bias))
                start += context.query_lengths[row]
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        return attend

    def _bind_decodes(self, context: ForwardContext, dtype: torch.dtype) -> Callable[[int, torch.Tensor], torch.Tensor]:
        """(layer, query [num_decodes, num_heads, head_dim]) → attended values: one token each, against all of its blocks."""
        bias = self._decode_bias(context).to(dtype)
        tables = context.block_tables[: context.num_decodes, : _num_blocks(bias, self.cache)]
        if sparse.is_supported(dtype, self.slopes.device):
            offsets = torch.arange(self.cache.block_size)
            slots = (tables.unsqueeze(2) * self.cache.block_size + offsets).flatten(1)
            return sparse.SparseDecode(self.cache.rows(slots), bias, self.scale, self.cache).attend

        def attend(layer: int, query: torch.Tensor) -> torch.Tensor:
            keys = self._gather(self.cache.keys[layer], tables)  # [num_decodes, num_heads, padded_length, head_dim]
            values = self._gather(self.cache.values[layer], tables)
            output = F.scaled_dot_product_attention(query.unsqueeze(2), keys, values, attn_mask=bias, scale=self.scale)
            return output.squeeze(2)

        return attend

    def _attend_prefill(self, layer: int, query: torch.Tensor, table: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """query [length, num_heads, head_dim] of one sequence against its own blocks."""
        keys = self._gather(self.cache.keys[layer], table.unsqueeze(0))  # [1, num_heads, padded_length, head_dim]
        values = self._gather(self.cache.values[layer], table.unsqueeze(0))
        query = query.transpose(0, 1).unsqueeze(0)
        output = F.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=self.scale)
        return output.squeeze(0).transpose(0, 1)

    def _gather(self, blocks: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
        """[num_sequences, num_blocks] of block ids → [num_sequences, num_heads, num_blocks * block_size, head_dim]."""
        num_heads, _, head_dim = blocks.shape[1:]
        heads = torch.arange(num_heads, device=tables.device)
        rows = tables.unsqueeze(1) * num_heads + heads[:, None]  # of the cache as [num_blocks * num_heads, block_size, …]
        return blocks.flatten(0, 1).index_select(0, rows.flatten()).view(len(tables), num_heads, -1, head_dim)

    def _decode_bias(self, context: ForwardContext) -> torch.Tensor:
        """[num_decodes, num_heads, 1, padded_length]: ALiBi, and -inf past each sequence's end."""
        lengths = torch.tensor(context.context_lengths[: context.num_decodes], device=self.slopes.device)
        position = self._positions(max(context.context_lengths[: context.num_decodes]))
        distance = position[None, :] - (lengths[:, None] - 1)  # <= 0 where the key is visible
        return self._alibi(distance.unsqueeze(1)).transpose(0, 1)

    def _prefill_bias(self, query_length: int, context_length: int) -> torch.Tensor:
        """[1, num_heads, query_length, padded_length]: ALiBi, and -inf for keys after the query."""
        query = torch.arange(context_length - query_length, context_length, device=self.slopes.device)
        distance = self._positions(context_length)[None, :] - query[:, None]
        return self._alibi(distance).unsqueeze(0)

    def _alibi(self, distance: torch.Tensor) -> torch.Tensor:
        """distance [...] → bias [num_heads, ...]."""
        slopes = self.slopes.view(-1, *[1] * distance.dim())
        return (slopes * distance).masked_fill(distance > 0, float("-inf"))

    def _positions(self, length: int) -> torch.Tensor:
        """0, 1, … up to the end of the last block that `length` tokens reach."""
        block_size = self.cache.block_size
        return torch.arange(-(-length // block_size) * block_size, device=self.slopes.device)


def _num_blocks(bias: torch.Tensor, cache: KVCache) -> int:
    return bias.shape[-1] // cache.block_size

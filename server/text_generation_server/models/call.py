"""Call: rows of a step that a model of transformers computes as one, and where their keys and values are.

In: a step's context and the rows. Out: positions and mask as a batched `generate` has them, padded on the left to the longest
row, and the keys and values of a layer in that form. Knows nothing of models.
"""

import torch

from text_generation_server.attention.context import ForwardContext
from text_generation_server.kv_cache import KVCache, bits


class Call:
    """Rows of a step that run as one, and where their keys and values are. They have equally many new tokens each, or nothing
    but new ones."""

    def __init__(
        self,
        context: ForwardContext,
        rows: list[int],
        cache: KVCache,
        offsets: list[int] | None = None,
        reuses_memory: bool = False,
    ) -> None:
        """`offsets`: which place among a row's slots is that of its first token, if not the first. `reuses_memory`: what a
        layer is given may be overwritten when the next one asks; new pages would cost a CPU more than what they are for."""
        self.cache = cache
        self.reuses_memory = reuses_memory
        self.sequence_ids = tuple(context.sequence_ids[row] for row in rows)
        query_lengths = [context.query_lengths[row] for row in rows]
        lengths = [context.context_lengths[row] for row in rows]
        self.query_length = max(query_lengths)
        self.past_length = max(lengths) - self.query_length
        self._pads_new = min(query_lengths) < self.query_length
        device = context.block_tables.device
        padding = max(lengths) - torch.tensor(lengths, device=device)
        # [num_rows, past_length + query_length]: each token's place in its sequence, negative where there is padding
        self.positions = torch.arange(self.past_length + self.query_length, device=device) - padding.unsqueeze(1)
        self._offsets = torch.tensor(offsets or [0] * len(rows), device=device).unsqueeze(1)
        self._tables = context.block_tables[rows]
        self._written: dict[int, torch.Tensor] = {}  # rows of the cache, by number of heads
        self._read: dict[int, torch.Tensor] = {}
        self._memory: dict[tuple[str, torch.Size], torch.Tensor] = {}

    @property
    def query_positions(self) -> torch.Tensor:
        """[num_rows, query_length]."""
        return self.positions[:, self.past_length :]

    @property
    def mask(self) -> torch.Tensor:
        """[num_rows, past_length + query_length]: 1 where a row has a token."""
        return (self.positions >= 0).long()

    def update(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """key, value [num_rows, num_heads, query_length, head_dim] → [num_rows, num_heads, past_length + query_length,
        head_dim]."""
        num_heads = key.shape[1]
        self._find(num_heads)
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        flat_key, flat_value = (self._new(tensor.transpose(1, 2)) for tensor in (key, value))
        self.cache.write(layer, self._written[num_heads], flat_key, flat_value)
        if self.past_length == 0 and keys.dtype == key.dtype:
            return key, value
        memory = "keys" if value.shape[-1] else "indexer"
        return self.gather(keys, memory).to(key.dtype), self.gather(values, "values").to(value.dtype)

    def gather(self, blocks: torch.Tensor, memory: str = "") -> torch.Tensor:
        """A layer's keys or values [num_blocks, num_heads, block_size, head_dim] → [num_rows, num_heads, past_length +
        query_length, head_dim]. With `reuses_memory`, what came to the same `memory` before is gone."""
        num_heads = blocks.shape[1]
        self._find(num_heads)
        out = self._memory.get((memory, blocks.shape)) if self.reuses_memory else None
        gathered = torch.index_select(bits(blocks).flatten(0, 2), 0, self._read[num_heads], out=out)
        self._memory[memory, blocks.shape] = gathered
        num_rows, length = self.positions.shape
        return gathered.view(blocks.dtype).view(num_rows, num_heads, length, blocks.shape[-1])

    def _find(self, num_heads: int) -> None:
        if num_heads in self._read:
            return
        positions, block_size = self.positions.clamp(min=0) + self._offsets, self.cache.block_size
        slots = self._tables.gather(1, positions // block_size) * block_size + positions % block_size
        rows = self.cache.rows(slots, num_heads)  # [num_rows, past_length + query_length, num_heads]
        self._written[num_heads] = self._new(rows[:, self.past_length :]).flatten()
        self._read[num_heads] = rows.transpose(1, 2).flatten()

    def _new(self, tensor: torch.Tensor) -> torch.Tensor:
        """[num_rows, query_length, ...] → [num_new_tokens, ...], without padding"""
        return tensor[self.query_positions >= 0] if self._pads_new else tensor.flatten(0, 1)

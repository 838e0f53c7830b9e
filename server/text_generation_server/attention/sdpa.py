"""Paged attention in plain PyTorch: right everywhere, for caches and processors that our kernels are not for.

In: queries, keys and values of a packed batch. Out: attended values. Keys and values are written to their blocks. Prompt
chunks gather theirs one by one, unless they begin a sequence and have all they see at hand; decoding sequences do so in one
padded call.
"""

import torch
import torch.nn.functional as F

from text_generation_server.attention.context import ForwardContext
from text_generation_server.attention.kind import Attend, AttentionKind
from text_generation_server.kv_cache import KVCache, bits


class PagedAttention:
    fixed_launches = False  # one for each prompt, and masks as wide as the longest sequence

    def __init__(self, cache: KVCache, slopes: torch.Tensor | None = None) -> None:
        self.cache = cache
        self.slopes = None if slopes is None else slopes.float()

    def bind(self, context: ForwardContext, dtype: torch.dtype) -> Attend:
        """Returns the function that all layers of one forward call; layers that see the same share its masks."""
        written: dict[int, torch.Tensor] = {}
        masks: dict[tuple[object, ...], _Masks] = {}

        def attend(
            layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kind: AttentionKind
        ) -> torch.Tensor:
            num_heads, num_kv_heads = query.shape[1], key.shape[1]
            if num_kv_heads not in written:
                written[num_kv_heads] = self.cache.rows(context.slot_mapping, num_kv_heads).flatten()
            self.cache.write(layer, written[num_kv_heads], key, value)
            seen = (num_heads, num_kv_heads, kind.window, kind.chunk)
            if seen not in masks:
                masks[seen] = _Masks(self, context, dtype, *seen)
            return masks[seen].attend(layer, query, key, value, kind)

        return attend


class _Masks:
    """What a forward's sequences may see within one window or chunk, as biases, and attention under them."""

    def __init__(
        self,
        attention: PagedAttention,
        context: ForwardContext,
        dtype: torch.dtype,
        num_heads: int,
        num_kv_heads: int,
        window: int | None,
        chunk: int | None,
    ) -> None:
        self.cache = attention.cache
        self.num_heads = num_heads
        self.slopes = attention.slopes
        self.context = context
        self.window = window
        self.chunk = chunk
        self.device = context.slot_mapping.device
        self.keeps_all = self.cache.dtype == dtype
        self.dtype = dtype
        self.prefill_biases: dict[int, torch.Tensor] = {}  # by row, those that were asked for
        self.decode_bias = self._decode_bias().to(dtype) if context.num_decodes else None

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kind: AttentionKind
    ) -> torch.Tensor:
        start, parts = self.context.num_decodes, []
        if self.decode_bias is not None:
            parts.append(self._attend_decodes(layer, query[:start], self.decode_bias, kind))
        for row in range(self.context.num_decodes, len(self.context.query_lengths)):
            own = slice(start, start + self.context.query_lengths[row])
            if kind.is_plain and self._sees_own_past(row):
                parts.append(self._attend_own(query[own], key[own], value[own], kind))
            else:
                parts.append(self._attend_prefill(layer, query[own], row, kind))
            start = own.stop
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _sees_own_past(self, row: int) -> bool:
        """Whether the chunk begins its sequence, and each of its tokens sees just those before it, as the cache would have
        them."""
        length = self.context.context_lengths[row]
        reach = min(self.window or length, self.chunk or length)
        return self.keeps_all and self.slopes is None and self.context.query_lengths[row] == length <= reach

    def _attend_own(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kind: AttentionKind
    ) -> torch.Tensor:
        """All [length, their heads, head_dim]: nothing is read from the cache, and nothing computed that is hidden."""
        key, value = self.cache.fit(key), self.cache.fit(value)
        query, key, value = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (query, key, value))
        return self._attend_plain(query, key, value, None, kind).squeeze(0).transpose(0, 1)

    def _attend_decodes(
        self, layer: int, query: torch.Tensor, bias: torch.Tensor, kind: AttentionKind
    ) -> torch.Tensor:
        """query [num_decodes, num_heads, key_dim]: one token each, against all of its blocks."""
        return self._attend(layer, query.unsqueeze(2), self._decode_tables, bias, kind).squeeze(2)

    def _attend_prefill(self, layer: int, query: torch.Tensor, row: int, kind: AttentionKind) -> torch.Tensor:
        """query [length, num_heads, key_dim] of one sequence against its own blocks."""
        if row not in self.prefill_biases:
            lengths = self.context.query_lengths[row], self.context.context_lengths[row]
            self.prefill_biases[row] = self._prefill_bias(*lengths).to(self.dtype)
        bias = self.prefill_biases[row]
        table = self.context.block_tables[row : row + 1, : bias.shape[-1] // self.cache.block_size]
        return self._attend(layer, query.transpose(0, 1).unsqueeze(0), table, bias, kind).squeeze(0).transpose(0, 1)

    def _attend(
        self, layer: int, query: torch.Tensor, tables: torch.Tensor, bias: torch.Tensor, kind: AttentionKind
    ) -> torch.Tensor:
        """query [num_sequences, num_heads, query_length, key_dim] → [..., value_dim]."""
        keys = self._gather(self.cache.keys[layer], tables).to(query.dtype)  # [num_sequences, num_kv_heads, length, key_dim]
        values = self._gather(self.cache.values[layer], tables).to(query.dtype)
        if kind.is_plain:
            return self._attend_plain(query, keys, values, bias, kind)
        keys, values = self._repeat(keys), self._repeat(values)
        scores = query @ keys.transpose(2, 3) * kind.scale
        if kind.softcap is not None:
            scores = kind.softcap * torch.tanh(scores / kind.softcap)
        scores = scores + bias
        if kind.sinks is not None:
            sinks = kind.sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
            scores = torch.cat([scores, sinks], dim=-1)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
        return weights[..., : keys.shape[2]] @ values

    def _attend_plain(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None, kind: AttentionKind
    ) -> torch.Tensor:
        """As `_attend`; without a bias each query sees the keys up to its own."""
        if keys.is_cuda:  # whose kernel that takes a mask takes no grouped heads
            keys, values = self._repeat(keys), self._repeat(values)
        is_grouped = keys.shape[1] != self.num_heads
        return F.scaled_dot_product_attention(
            query, keys, values, attn_mask=bias, is_causal=bias is None, scale=kind.scale, enable_gqa=is_grouped
        )

    def _repeat(self, heads: torch.Tensor) -> torch.Tensor:
        """[num_sequences, num_kv_heads, ...] → [num_sequences, num_heads, ...]."""
        group = self.num_heads // heads.shape[1]
        return heads.repeat_interleave(group, dim=1) if group > 1 else heads

    def _gather(self, blocks: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
        """[num_sequences, num_blocks] of block ids → [num_sequences, num_kv_heads, num_blocks * block_size, head_dim]."""
        num_heads, _, head_dim = blocks.shape[1:]
        heads = torch.arange(num_heads, device=tables.device)
        rows = tables.unsqueeze(1) * num_heads + heads[:, None]  # of the cache as [num_blocks * num_heads, block_size, …]
        gathered = bits(blocks).flatten(0, 1).index_select(0, rows.flatten()).view(blocks.dtype)
        return gathered.view(len(tables), num_heads, -1, head_dim)

    @property
    def _decode_tables(self) -> torch.Tensor:
        """[num_decodes, num_blocks]: as many blocks as the longest of them has."""
        num_positions = len(self._positions(max(self.context.context_lengths[: self.context.num_decodes])))
        return self.context.block_tables[: self.context.num_decodes, : num_positions // self.cache.block_size]

    def _decode_bias(self) -> torch.Tensor:
        """[num_decodes, num_heads or 1, 1, padded_length]: -inf where a sequence sees nothing."""
        context_lengths = self.context.context_lengths[: self.context.num_decodes]
        lengths = torch.tensor(context_lengths, device=self.device)
        query = (lengths - 1).view(-1, 1, 1)
        distance = self._positions(max(context_lengths)) - query  # <= 0 where the key is not after the query
        return self._bias(distance, query).transpose(0, 1)

    def _prefill_bias(self, query_length: int, context_length: int) -> torch.Tensor:
        """[1, num_heads or 1, query_length, padded_length]: -inf for keys after the query, or too far before it."""
        query = torch.arange(context_length - query_length, context_length, device=self.device).unsqueeze(1)
        return self._bias(self._positions(context_length) - query, query).unsqueeze(0)

    def _bias(self, distance: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        """distance [...] of a key from its query, which is at position `query` → bias [num_heads or 1, ...]."""
        hidden = distance > 0
        if self.window is not None:
            hidden |= distance <= -self.window
        if self.chunk is not None:
            hidden |= distance < -(query % self.chunk)
        if self.slopes is None:
            return torch.zeros(distance.shape, device=self.device).masked_fill(hidden, float("-inf")).unsqueeze(0)
        return (self.slopes.view(-1, *[1] * distance.dim()) * distance).masked_fill(hidden, float("-inf"))

    def _positions(self, length: int) -> torch.Tensor:
        """0, 1, … up to the end of the last block that `length` tokens reach."""
        block_size = self.cache.block_size
        return torch.arange(-(-length // block_size) * block_size, device=self.device)

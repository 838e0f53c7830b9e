"""SequenceCache: what transformers' models take for their cache, with keys and values in our blocks.

In: the layers of a model's own cache, and rows of a step that run as one call. Out: the keys and values of each row, padded
on the left to the longest, as in a batched `generate`. Layers with a state instead have that of each row. Knows nothing of
models.
"""

import copy
from collections.abc import Collection
from typing import Any

import torch
from transformers.cache_utils import (
    Cache,
    DynamicIndexedLayer,
    DynamicLayer,
    LinearAttentionAndFullAttentionLayer,
)

from text_generation_server.attention.context import ForwardContext
from text_generation_server.errors import ModelError
from text_generation_server.kv_cache import KVCache, KVShape
from text_generation_server.models.states import States, num_bytes


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
        flat_key, flat_value = (self._new(tensor.transpose(1, 2)).to(keys.dtype) for tensor in (key, value))
        self.cache.write(layer, self._written[num_heads], flat_key, flat_value)
        if self.past_length == 0:
            return key, value
        memory = "keys" if value.shape[-1] else "indexer"
        return self.gather(keys, memory).to(key.dtype), self.gather(values, "values").to(value.dtype)

    def gather(self, blocks: torch.Tensor, memory: str = "") -> torch.Tensor:
        """A layer's keys or values [num_blocks, num_heads, block_size, head_dim] → [num_rows, num_heads, past_length +
        query_length, head_dim]. With `reuses_memory`, what came to the same `memory` before is gone."""
        num_heads = blocks.shape[1]
        self._find(num_heads)
        out = self._memory.get((memory, blocks.shape)) if self.reuses_memory else None
        gathered = torch.index_select(blocks.flatten(0, 2), 0, self._read[num_heads], out=out)
        self._memory[memory, blocks.shape] = gathered
        num_rows, length = self.positions.shape
        return gathered.view(num_rows, num_heads, length, blocks.shape[-1])

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


class PagedLayer(DynamicLayer):
    """Keys and values lie in layer `index` of the KV cache. All of them are given back: how few of them a window lets a layer
    see is the business of the model's mask."""

    call: Call
    index: int

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.call.update(self.index, key_states, value_states)

    def get_seq_length(self) -> int:
        return self.call.past_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.call.past_length + query_length, 0


class PagedIndexedLayer(PagedLayer, DynamicIndexedLayer):
    """Its second part, of keys that choose what is attended to, is the next layer of the KV cache."""

    @property
    def indexer_position_ids(self) -> torch.Tensor | None:
        """[3, num_rows, past_length]: where those keys are, in time, height and width; all the same in text."""
        past_length = self.call.past_length
        return self.call.positions[:, :past_length].clamp(min=0).expand(3, -1, -1) if past_length else None

    @indexer_position_ids.setter
    def indexer_position_ids(self, _: torch.Tensor | None) -> None:
        """The call knows."""

    def update_indexer(self, indexer_key_states: torch.Tensor) -> torch.Tensor:
        """[num_rows, query_length, key_dim] → [num_rows, past_length + query_length, key_dim]."""
        key = indexer_key_states.unsqueeze(1)
        return self.call.update(self.index + 1, key, key[..., :0])[0].squeeze(1)


class PagedSparseLayer(PagedLayer):
    """The same for MiniMax M3, in its words."""

    def update_index(self, idx_k: torch.Tensor) -> torch.Tensor:
        """[num_rows, num_heads, query_length, key_dim] → [num_rows, num_heads, past_length + query_length, key_dim]."""
        return self.call.update(self.index + 1, idx_k, idx_k[..., :0])[0]


class PagedHybridLayer(PagedLayer, LinearAttentionAndFullAttentionLayer):  # type: ignore[misc, override]
    """Has a state as well."""


PAGED_LAYERS: dict[str, type[PagedLayer]] = {  # by the name of the model's own layer
    "DynamicLayer": PagedLayer,
    "DynamicSlidingWindowLayer": PagedLayer,
    "DynamicIndexedLayer": PagedIndexedLayer,
    "LinearAttentionAndFullAttentionLayer": PagedHybridLayer,
    "LinearAttentionAndSlidingWindowAttentionLayer": PagedHybridLayer,
    "MiniMaxM3VLSparseCacheLayer": PagedSparseLayer,
}


class SequenceCache(Cache):
    """The cache of one call."""

    def __init__(self, layers: list[Any], call: Call) -> None:
        super().__init__(layers=layers)
        self.call = call
        for layer in layers:
            if isinstance(layer, PagedLayer):
                layer.call = call

    @property
    def is_initialized(self) -> bool:
        return self.call.past_length > 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.call.past_length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.call.past_length + query_length, 0


class SequenceCaches:
    """Makes each call its cache. States, where layers have them, are kept by sequence."""

    def __init__(self, blank: list[Any], used: list[Any]) -> None:
        """The layers of a model's own cache, before and after its forward of one token.

        Raises:
            ModelError: they keep something that is not known here.
        """
        self.kv_shapes: list[KVShape] = []
        self.state_bytes = sum(map(_state_bytes, used))
        self._states = States()
        self._layers = [self._lay_out(*pair) for pair in zip(blank, used, strict=True)]

    def find(self, call: Call) -> SequenceCache:
        """
        Raises:
            StepError: a sequence goes on whose state is not here.
        """
        if self.state_bytes == 0:
            layers = self._layers
        elif call.past_length == 0:
            layers = copy.deepcopy(self._layers)
        else:
            layers = self._states.find(call.sequence_ids)
        return SequenceCache(layers, call)

    def keep(self, call: Call, cache: SequenceCache) -> None:
        """What the call left in its cache. Of the call itself nothing stays: it has memory that others want."""
        for layer in cache.layers:
            vars(layer).pop("call", None)
        if self.state_bytes:
            self._states.keep(call.sequence_ids, cache.layers)

    def forget(self, sequence_ids: Collection[int]) -> None:
        self._states.forget(sequence_ids)

    def _lay_out(self, blank: Any, used: Any) -> Any:
        """A layer that keeps in blocks what `used` keeps of a token."""
        index = len(self.kv_shapes)
        if (keys := getattr(used, "keys", None)) is not None and keys.numel():
            self.kv_shapes.append(KVShape(keys.shape[1], keys.shape[3], used.values.shape[3]))
        if (keys := getattr(used, "indexer_keys", None)) is not None:
            self.kv_shapes.append(KVShape(1, keys.shape[2], 0))
        if (keys := getattr(used, "idx_keys", None)) is not None:
            self.kv_shapes.append(KVShape(keys.shape[1], keys.shape[3], 0))
        if len(self.kv_shapes) == index:
            return blank
        name = type(blank).__name__
        if name not in PAGED_LAYERS:
            raise ModelError(f"what {name} keeps of a token cannot be paged")
        paged = PAGED_LAYERS[name]
        layer = paged.__new__(paged)  # with all that the model's own layer has
        vars(layer).update(vars(blank), index=index, is_sliding=blank.is_sliding)
        return layer


def _state_bytes(layer: Any) -> int:
    return num_bytes([getattr(layer, name, None) for name in ("conv_states", "recurrent_states")])

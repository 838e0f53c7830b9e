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

from text_generation_server.errors import ModelError
from text_generation_server.kv_cache import KVShape
from text_generation_server.models.call import Call
from text_generation_server.models.states import States, num_bytes


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

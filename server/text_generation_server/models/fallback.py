"""Fallback: any decoder of transformers in its own code, with continuous batching, where our attention cannot be put in.

In: a model folder. Out: the contract of models. The decoding sequences of a step are one call, padded on the left as in a
batched `generate`; each prompt, or chunk of one, is a call of its own. What they attend to comes through `SequenceCaches`.
"""

import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from text_generation_server.attention.context import ForwardContext
from text_generation_server.errors import ModelError, StepError
from text_generation_server.kv_cache import KVCache, KVShape
from text_generation_server.layers.selective_scan import selective_scan
from text_generation_server.models.call import Call
from text_generation_server.models.decoder_config import refuse_dynamic_rope
from text_generation_server.models.row_positions import RowPositions
from text_generation_server.models.sequence_cache import SequenceCaches
from text_generation_server.models.split_model import CACHE_NAMES, SplitModel
from text_generation_server.models.states import States, num_bytes
from text_generation_server.models.transformers_loader import TransformersLoader
from text_generation_server.parallel import Parallel

CARRIED = ("rwkv", "xlstm")  # types with a cache of their own
CONTINUES = (  # types with a state that a part of a prompt can begin with
    *("bailing_hybrid", "bamba", "falcon_h1", "granitemoehybrid", "inkling2_text", "inkling_text", "kimi_linear", "lfm2"),
    *("lfm2_moe", "lfm3", "mamba2", "nemotron_h", "olmo_hybrid", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"),
    *("qwen4_exp_text", "rwkv", "xlstm", "zamba2", "zaya"),
)
WHOLE_PROMPTS = ("hrm_text",)  # attention only, but a prompt's first part is not computed as its other parts
POSITION_FREE = ("mpt",)  # ALiBi, counted back from the last key
ALIKE = (  # there must be no padding:
    "git",  # widens the mask at its front, for a picture
    "minimax_m3_vl_text",  # chooses between blocks of keys, counted from the first
)
ALONE = ("rwkv",)  # in a batch of single tokens, it adds each row to all others


class Fallback(SplitModel):
    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype, parallel: Parallel, quantize: str | None
    ) -> None:
        """
        Raises:
            ModelError: transformers cannot load the folder, or answers to one sequence would depend on others.
            ConfigurationError: it does not split over so many ranks.
        """
        loader = self.make_loader(folder)
        refuse_dynamic_rope(loader.config)
        super().__init__(loader.load(device, dtype, parallel, quantize))
        self._model_type = loader.config.model_type
        self._is_alone = self._model_type in ALONE
        self._cache_name = self._find_cache_name()
        is_told = "position_ids" in self._trunk_takes
        self._row_positions = None if is_told else RowPositions.take_over(self._trunk, self.config.max_positions)
        # What a layer attends to is done with when the next one asks, unless layers share it.
        self._reuses_memory = device.type == "cpu" and not getattr(loader.config, "num_kv_shared_layers", None)
        if device.type == "cpu":
            _scan_fast(self._trunk)
        self._caches = self._find_caches(loader.config, device)
        self.kv_shapes, self.state_bytes = self._caches.kv_shapes, self._caches.state_bytes
        takes_parts = self._model_type not in WHOLE_PROMPTS
        self.prefix_cache = takes_parts and self.state_bytes == 0
        self.chunked_prefill = takes_parts and (self.state_bytes == 0 or self._model_type in CONTINUES)

    @staticmethod
    def make_loader(folder: Path) -> TransformersLoader:
        """
        Raises:
            ModelError: transformers does not know the model.
        """
        loader = SplitModel.make_loader(folder)
        if hasattr(loader.config, "rescale_every"):
            loader.config.rescale_every = 0  # RWKV would halve weights that are not there any more, against float16's limits
        return loader

    def make_attention(self, cache: KVCache) -> KVCache:
        return cache

    def forward(self, token_ids: torch.Tensor, context: ForwardContext, attention: KVCache) -> torch.Tensor:
        """token_ids [num_tokens] → hidden states [num_wanted, hidden_size].

        Raises:
            StepError: a sequence goes on whose state is not here, or does so with more than a token where it cannot.
        """
        tokens = token_ids.split(context.query_lengths)
        hidden: list[torch.Tensor] = [token_ids] * len(tokens)
        for rows in self._calls(context):
            call = Call(context, rows, attention, reuses_memory=self._reuses_memory)
            if call.past_length and call.query_length > 1 and not self.chunked_prefill:
                raise StepError(f"sequence {call.sequence_ids[0]}: this model takes a prompt as a whole only")
            output = self._run_call(call, torch.stack([tokens[row] for row in rows]))
            for row, states in zip(rows, output, strict=True):
                hidden[row] = states
        return context.pick_wanted(torch.cat(hidden))

    def forget(self, sequence_ids: Collection[int]) -> None:
        self._caches.forget(sequence_ids)

    def _calls(self, context: ForwardContext) -> Iterator[list[int]]:
        """Rows of a step that can run together."""
        decodes: dict[int, list[int]] = {}  # by length, where it matters
        for row, (query_length, length) in enumerate(zip(context.query_lengths, context.context_lengths, strict=True)):
            if query_length > 1 or length == 1 or self._is_alone:
                yield [row]
            else:
                decodes.setdefault(0 if self._mixes_lengths else length, []).append(row)
        yield from decodes.values()

    @property
    def _mixes_lengths(self) -> bool:
        """Whether rows of one call may have pasts of different lengths: each must count its own positions, if it counts any."""
        if self._model_type in ALIKE:
            return False
        is_told = "position_ids" in self._trunk_takes or self._row_positions is not None
        return is_told or self._model_type in POSITION_FREE or not self.kv_shapes

    def _run_call(self, call: Call, token_ids: torch.Tensor) -> torch.Tensor:
        """token_ids [num_rows, query_length] → hidden states [num_rows, query_length, hidden_size]."""
        cache = self._caches.find(call)
        mask = call.mask if self.kv_shapes else None  # a state has no padding
        output = self._run(token_ids, call.query_positions, mask, cache)
        self._caches.keep(call, output[self._cache_name] if cache is None else cache)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def _run(self, token_ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, cache: Any) -> Any:
        """token_ids and positions [num_rows, length], mask [num_rows, the longest row's past and length]."""
        given = {"position_ids": positions, "attention_mask": mask, self._cache_name: cache, "use_cache": True}
        if self._row_positions is not None:
            self._row_positions.positions = positions
        return self._trunk(input_ids=token_ids, **{name: given[name] for name in given.keys() & self._trunk_takes})

    @torch.inference_mode()
    def _find_caches(self, config: Any, device: torch.device) -> "SequenceCaches | _CarriedCaches":
        """What the model keeps of a token: it is run once."""
        token = torch.zeros(1, 1, dtype=torch.long, device=device)
        if config.model_type in CARRIED:
            return _CarriedCaches(self._run(token, token, None, None)[self._cache_name])
        blank, used = DynamicCache(config=config), DynamicCache(config=config)
        used.layer_class_to_replicate = DynamicLayer  # some decoders' configurations count an encoder's layers
        self._run(token, token, token + 1, used)
        blank.layers += [DynamicLayer() for _ in used.layers[len(blank.layers) :]]
        return SequenceCaches(blank.layers, used.layers)

    def _find_cache_name(self) -> str:
        """
        Raises:
            ModelError: a trunk without a cache.
        """
        if found := [name for name in CACHE_NAMES if name in self._trunk_takes]:
            return found[0]
        raise ModelError(f"{type(self._trunk).__name__} of model type {self._model_type!r} takes no cache")


def _scan_fast(trunk: Any) -> None:
    """For all trunks of this kind in this process: their layers find the function in their module."""
    module = sys.modules[type(trunk).__module__]
    if hasattr(module, "mamba_selective_scan"):
        vars(module)["mamba_selective_scan"] = selective_scan


class _CarriedCaches:
    """Caches that a model makes by itself: each call is given what the last one left."""

    def __init__(self, used: Any) -> None:
        """What the model made of one token."""
        self.kv_shapes: list[KVShape] = []
        self.state_bytes = num_bytes(used)
        self._states = States()

    def find(self, call: Call) -> Any:
        """None for a new sequence.

        Raises:
            StepError: a sequence goes on whose state is not here.
        """
        return self._states.find(call.sequence_ids) if call.past_length else None

    def keep(self, call: Call, cache: Any) -> None:
        self._states.keep(call.sequence_ids, cache)

    def forget(self, sequence_ids: Collection[int]) -> None:
        self._states.forget(sequence_ids)

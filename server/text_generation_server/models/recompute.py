"""Recompute: decoders of transformers that keep nothing from one token to the next, or in no form that can be batched.

In: a model folder. Out: the contract of models. A sequence's state is its tokens: each step runs the whole of it again. Slow,
and right.
"""

from collections.abc import Collection
from pathlib import Path

import torch

from text_generation_server.attention.context import ForwardContext
from text_generation_server.errors import StepError
from text_generation_server.kv_cache import KVCache, KVShape
from text_generation_server.models.split_model import SplitModel
from text_generation_server.parallel import Parallel


class Recompute(SplitModel):
    chunked_prefill = True
    prefix_cache = False

    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype, parallel: Parallel, quantize: str | None
    ) -> None:
        """
        Raises:
            ModelError: transformers cannot load the folder.
            ConfigurationError: it does not split over so many ranks.
        """
        super().__init__(self.make_loader(folder).load(device, dtype, parallel, quantize))
        self.kv_shapes: list[KVShape] = []
        self.state_bytes = self.config.max_positions * torch.long.itemsize
        self._tokens: dict[int, torch.Tensor] = {}

    def make_attention(self, cache: KVCache) -> None:
        """Nothing is kept in blocks."""

    def forward(self, token_ids: torch.Tensor, context: ForwardContext, attention: None) -> torch.Tensor:
        """token_ids [num_tokens] → hidden states [num_wanted, hidden_size].

        Raises:
            StepError: a sequence goes on whose tokens are not here.
        """
        for row, tokens in enumerate(token_ids.split(context.query_lengths)):
            self._extend(context.sequence_ids[row], context.context_lengths[row] - len(tokens), tokens)
        lengths = zip(context.sequence_ids, context.query_lengths, strict=True)
        hidden = [self._run(self._tokens[number])[-length:] for number, length in lengths]
        return context.pick_wanted(torch.cat(hidden))

    def forget(self, sequence_ids: Collection[int]) -> None:
        for number in sequence_ids:
            self._tokens.pop(number, None)

    def _extend(self, number: int, start: int, tokens: torch.Tensor) -> None:
        known = self._tokens.get(number, tokens[:0])[:start]
        if len(known) < start:
            raise StepError(f"sequence {number} goes on at position {start}, but only {len(known)} tokens of it are here")
        self._tokens[number] = torch.cat([known, tokens])

    def _run(self, token_ids: torch.Tensor) -> torch.Tensor:
        """All tokens of a sequence → their hidden states [num_tokens, hidden_size]. One sequence at a time: those of these
        models that see what comes after a token would see the padding."""
        options = {"use_cache": False} if "use_cache" in self._trunk_takes else {}
        hidden: torch.Tensor = self._trunk(input_ids=token_ids.unsqueeze(0), **options).last_hidden_state
        return hidden.squeeze(0)

"""The contract: what the runner uses of a model, whoever made it.

A model maps the packed tokens of a step to hidden states, and rows of these to this rank's part of the logits.
"""

from collections.abc import Collection
from typing import Any, Protocol

import torch

from text_generation_server.attention.context import ForwardContext
from text_generation_server.decoding import Decoding
from text_generation_server.kv_cache import KVCache, KVShape


class ModelSizes(Protocol):
    @property
    def vocab_size(self) -> int: ...

    @property
    def max_positions(self) -> int: ...


class Model(Protocol):
    @property
    def config(self) -> ModelSizes: ...

    @property
    def weight_bytes(self) -> int:
        """What the matrices that every decode step reads occupy on this rank."""

    @property
    def kv_shapes(self) -> list[KVShape]:
        """What each layer keeps of a token in the blocks; empty where nothing is."""

    @property
    def state_bytes(self) -> int:
        """What a sequence takes beside its blocks; 0 where they are all there is."""

    @property
    def chunked_prefill(self) -> bool:
        """Whether a prompt may be computed in parts, one step each."""

    @property
    def prefix_cache(self) -> bool:
        """Whether a sequence may begin with blocks that another one has computed."""

    @property
    def fixed_launches(self) -> bool:
        """Whether all batches of so many decoding sequences order the same kernels, which may be recorded then."""

    @property
    def decoding(self) -> Decoding | None:
        """How answers begin and end where an encoder reads the prompt; None: the prompt itself is continued."""

    def make_attention(self, cache: KVCache) -> Any:
        """What the forwards with this cache need, made once."""

    def forward(self, token_ids: torch.Tensor, context: ForwardContext, attention: Any) -> torch.Tensor:
        """token_ids [num_tokens] → hidden states [num_wanted, hidden_size], of the context's wanted rows.

        Raises:
            StepError: the step goes on with what is not there.
        """

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [num_rows, hidden_size] → this rank's logits [num_rows, vocab_size_local], float32."""

    def forget(self, sequence_ids: Collection[int]) -> None:
        """These sequences are gone; their ids may come again for others. Some may never have been seen."""


class PagedModel:
    """The part of the contract that is the same for all models that keep nothing but blocks."""

    state_bytes = 0
    chunked_prefill = True
    prefix_cache = True
    fixed_launches = False
    decoding: Decoding | None = None

    def forget(self, sequence_ids: Collection[int]) -> None:
        """There is nothing to forget: blocks are the router's business."""

"""What attention is asked for, whoever computes it: how a layer attends, and the functions that do."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import torch

from text_generation_server.attention.context import ForwardContext


@dataclasses.dataclass(frozen=True, slots=True)
class AttentionKind:
    """How a layer attends. Layers of one model may differ."""

    scale: float
    window: int | None = None  # a position sees itself and the window - 1 before it
    chunk: int | None = None  # a position sees only the chunk of so many positions that it is in
    softcap: float | None = None  # scores become softcap * tanh(score / softcap)
    sinks: torch.Tensor | None = None  # [num_heads]: one more score a head, which takes weight and gives nothing

    @property
    def is_plain(self) -> bool:
        """Whether scores are used as they are, as PyTorch's own attention does."""
        return self.softcap is None and self.sinks is None


# (layer, query [num_tokens, num_heads, key_dim], key [num_tokens, num_kv_heads, key_dim], value [num_tokens, num_kv_heads,
# value_dim], kind) → [num_tokens, num_heads, value_dim]
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, AttentionKind], torch.Tensor]


class Attention(Protocol):
    """Causal attention over a block cache. Several query heads may share a key-value head, in order. With slopes
    [num_heads], this rank's, it is ALiBi attention (Press et al. 2021, arXiv:2108.12409)."""

    fixed_launches: bool  # whether all batches of so many decoding sequences order the same kernels

    def bind(self, context: ForwardContext, dtype: torch.dtype) -> Attend:
        """Returns the function that all layers of one forward call. It writes the new keys and values to their slots first."""

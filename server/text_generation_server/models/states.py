"""States: what a model keeps of each sequence where it does not lie in blocks.

In: what a call of sequences left behind, a row each. Out: the same for whichever sequences run together next. Sequences that
stay together are not touched in between. Knows nothing of models, and of states only that rows come first.
"""

import copy
import dataclasses
from collections.abc import Collection
from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

from text_generation_server.errors import StepError


@dataclasses.dataclass(frozen=True, slots=True)
class Together:
    """`state` is tensors [num_rows, ...], in whatever they are wrapped."""

    sequence_ids: tuple[int, ...]
    state: Any


class States:
    def __init__(self) -> None:
        self._places: dict[int, tuple[Together, int]] = {}

    def keep(self, sequence_ids: tuple[int, ...], state: Any) -> None:
        together = Together(sequence_ids, state)
        self._places.update({number: (together, row) for row, number in enumerate(sequence_ids)})

    def find(self, sequence_ids: tuple[int, ...]) -> Any:
        """
        Raises:
            StepError: one of them was never kept, or is forgotten.
        """
        if missing := [number for number in sequence_ids if number not in self._places]:
            raise StepError(f"sequence {missing[0]} goes on, but there is no state of what came before")
        places = [self._places[number] for number in sequence_ids]
        first, _ = places[0]
        if first.sequence_ids == sequence_ids and all(together is first for together, _ in places):
            return first.state
        return _rows([(together.state, row) for together, row in places])

    def forget(self, sequence_ids: Collection[int]) -> None:
        for number in sequence_ids:
            self._places.pop(number, None)


def num_bytes(state: Any) -> int:
    if isinstance(state, torch.Tensor):
        return state.nbytes if state.dim() else 0
    return sum(map(num_bytes, _parts(state)))


def _rows(sources: list[tuple[Any, int]]) -> Any:
    """One state of the rows of others, wrapped as they are."""
    first, _ = sources[0]
    if isinstance(first, torch.Tensor) and first.dim():
        return torch.cat([tensor[row : row + 1] for tensor, row in sources])
    if isinstance(first, dict):
        return {key: _rows([(source[key], row) for source, row in sources]) for key in first}
    if isinstance(first, list | tuple):
        return type(first)(_rows([(source[index], row) for source, row in sources]) for index in range(len(first)))
    if _is_wrapper(first):
        whole = copy.copy(first)
        vars(whole).update(_rows([(vars(source), row) for source, row in sources]))
        return whole
    return first


def _parts(state: Any) -> Collection[Any]:
    if isinstance(state, dict):
        return state.values()
    if isinstance(state, list | tuple):
        return state
    return vars(state).values() if _is_wrapper(state) else ()


def _is_wrapper(state: Any) -> bool:
    return isinstance(state, CacheLayerMixin | LinearAttentionCacheLayerMixin) or hasattr(state, "rnn_state")

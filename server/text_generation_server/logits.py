"""Logits: what a request asks to be done to them by what was said before: biases, watermark, penalties.

In: this rank's part of the logits, and each row's sequence. Out: logits again. Knows nothing of filters, of the choice, nor
of other ranks: each rank changes the rows of the vocabulary it has.
"""

import dataclasses

import torch

from text_generation_server.decoding import Decoding
from text_generation_server.sequences import SequenceState

LARGEST = torch.finfo(torch.float32).max
WATERMARK_KEY = 15485863  # the paper's, a prime: whoever detects a watermark needs the same


@dataclasses.dataclass(frozen=True, slots=True)
class Watermark:
    """A soft watermark (Kirchenbauer et al. 2023, arXiv:2301.10226): each token chooses a part of the vocabulary, its
    green list, for the next one, and `delta` is added to the logits of that part."""

    gamma: float  # share of the vocabulary that is green
    delta: float

    def green_list(self, previous_id: int, vocab_size: int) -> torch.Tensor:
        """Token ids, on the CPU: CUDA's generators draw other numbers, and a detector need not have a GPU."""
        generator = torch.Generator().manual_seed(WATERMARK_KEY * previous_id)
        return torch.randperm(vocab_size, generator=generator)[: int(self.gamma * vocab_size)]


class Penalties:
    """All that makes tokens more or less likely by what they are or by what was said before. `rows` are the token ids
    whose logits this rank has."""

    def __init__(self, vocab_size: int, rows: slice, watermark: Watermark) -> None:
        self.vocab_size = vocab_size
        self.rows = rows
        self.watermark = watermark

    def apply(self, logits: torch.Tensor, sequences: list[SequenceState]) -> bool:
        """logits [num_rows, vocab_size_local], changed in place. Whether any were."""
        changed = [row for row, sequence in enumerate(sequences) if sequence.sampling.changes_logits]
        for row in changed:
            self._apply_to_row(logits[row], sequences[row])
        return bool(changed)

    def _apply_to_row(self, scores: torch.Tensor, sequence: SequenceState) -> None:
        """scores [vocab_size_local]"""
        sampling = sequence.sampling
        if sampling.logit_bias:
            self._add(scores, torch.tensor(list(sampling.logit_bias)), torch.tensor(list(sampling.logit_bias.values())))
        if sampling.watermark:
            green = self.watermark.green_list(sequence.said[-1], self.vocab_size)
            self._add(scores, green, torch.full(green.shape, self.watermark.delta))
        if sampling.repetition_penalty != 1.0:
            self._penalize_repetition(scores, sequence.said, sampling.repetition_penalty)
        if sampling.frequency_penalty or sampling.presence_penalty:
            token_ids, counts = torch.tensor(sequence.generated, dtype=torch.long).unique(return_counts=True)
            penalties = counts.double() * sampling.frequency_penalty + sampling.presence_penalty
            self._add(scores, token_ids, -penalties.clamp(-LARGEST, LARGEST))
        scores.clamp_(-LARGEST, LARGEST)  # extreme parameters overflow, and infinities have no softmax

    def _penalize_repetition(self, scores: torch.Tensor, token_ids: list[int], penalty: float) -> None:
        """Keskar et al. 2019, arXiv:1909.05858: tokens seen before, in the prompt too, get less likely, once each."""
        local = torch.tensor(token_ids).unique() - self.rows.start
        local = local[self._is_here(local, scores)].to(scores.device)
        seen = scores[local]
        scores[local] = torch.where(seen < 0, seen * penalty, seen / penalty)

    def _add(self, scores: torch.Tensor, token_ids: torch.Tensor, values: torch.Tensor) -> None:
        """token_ids [n], no two alike, and values [n], both on the CPU; those of other ranks are passed over."""
        local = token_ids - self.rows.start
        is_here = self._is_here(local, scores)
        scores[local[is_here].to(scores.device)] += values[is_here].to(scores)

    def _is_here(self, local: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return (local >= 0) & (local < scores.shape[0])


class Rules:
    """What the model itself lays down, whatever a request asks for. `rows` as above."""

    def __init__(self, decoding: Decoding, rows: slice) -> None:
        self.decoding = decoding
        self.rows = rows
        self._banned = self._local(decoding.banned_token_ids)

    def apply(self, logits: torch.Tensor, sequences: list[SequenceState]) -> None:
        """logits [num_rows, vocab_size_local], changed in place."""
        logits[:, self._banned] = -LARGEST
        for row, sequence in enumerate(sequences):
            if forced := self.decoding.forced(sequence.num_generated, sequence.max_new_tokens):
                logits[row] = -LARGEST
                logits[row, self._local(forced)] = 0.0

    def _local(self, token_ids: tuple[int, ...]) -> list[int]:
        return [token_id - self.rows.start for token_id in token_ids if self.rows.start <= token_id < self.rows.stop]

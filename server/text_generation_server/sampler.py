"""Sampler: logits of all ranks → the next token of each row, the same on every rank, and its log-probability.

In: this rank's part of the logits and each row's sequence. Out: token ids, log-probabilities and, where asked for, top tokens.
Greedy rows need three numbers a rank (best value, its id, log-sum-exp), never the gathered vocabulary; sampled rows are
gathered, and chosen by inverting their cumulative distribution at one uniform number that depends on seed and position alone.
"""

import itertools
from typing import Any, NamedTuple

import torch

from text_generation_server.decoding import Decoding
from text_generation_server.filters import filter_logits
from text_generation_server.logits import Penalties, Rules, Watermark
from text_generation_server.logprobs import Logprobs, likeliest
from text_generation_server.parallel import Parallel
from text_generation_server.sequences import SequenceState

ROWS_AT_ONCE = 4  # that stay in a processor's cache from one operation to the next
DRAWN_AT_ONCE = 16  # on GPUs: to sort rows of a large vocabulary takes ten times their memory


class Sampled(NamedTuple):
    """For each row its token and what was likely in its place, after penalties and before temperature and filters."""

    token_ids: list[int]
    logprobs: list[float]
    top_ids: list[list[int]]  # as many as the row's sequence asked for
    top_logprobs: list[list[float]]

    @classmethod
    def of_greedy(cls, token_ids: list[int], logprobs: list[float]) -> "Sampled":
        nothing: list[list[Any]] = [[] for _ in token_ids]
        return cls(token_ids, logprobs, nothing, nothing)


class Greedy(NamedTuple):
    """The likeliest token of each row, its log-probability, and the log of the sum of all exponentials; [num_rows] each."""

    token_ids: torch.Tensor
    logprobs: torch.Tensor
    log_totals: torch.Tensor

    @classmethod
    def empty(cls, num_rows: int, device: torch.device) -> "Greedy":
        dtypes = (torch.long, torch.float32, torch.float64)
        return cls(*(torch.empty(num_rows, dtype=dtype, device=device) for dtype in dtypes))

    def first(self, num_rows: int) -> "Greedy":
        return Greedy(*(tensor[:num_rows] for tensor in self))

    def clone(self) -> "Greedy":
        return Greedy(*(tensor.clone() for tensor in self))

    def copy_(self, other: "Greedy") -> None:
        for tensor, own in zip(other, self, strict=True):
            own.copy_(tensor)


class Sampler:
    def __init__(
        self, vocab_size: int, parallel: Parallel, watermark: Watermark, decoding: Decoding | None = None
    ) -> None:
        self.vocab_size = vocab_size
        self.rows = parallel.split_padded(vocab_size)
        self.parallel = parallel
        self.penalties = Penalties(vocab_size, self.rows, watermark)
        self.rules = Rules(decoding, self.rows) if decoding else None
        self.logprobs = Logprobs(vocab_size, parallel)

    @property
    def vocab_size_local(self) -> int:
        return self.rows.stop - self.rows.start

    def sample(self, logits: torch.Tensor, sequences: list[SequenceState], greedy: Greedy | None = None) -> Sampled:
        """logits [num_rows, vocab_size_local] float32, changed in place by penalties and rules. `greedy`: what is greedy by
        them as they are, where that is known already."""
        is_changed = self.penalties.apply(logits, sequences)
        if self.rules:
            self.rules.apply(logits, sequences)
        if greedy is None or is_changed or self.rules:
            greedy = self.greedy(logits)
        token_ids, logprobs, log_total = greedy
        drawn = [row for row, sequence in enumerate(sequences) if sequence.sampling.do_sample]
        if drawn:
            full = self._gather(logits[drawn])
            chosen = self._draw_all(full, [sequences[row] for row in drawn])
            self.parallel.broadcast(chosen)
            token_ids[drawn] = chosen
            logprobs[drawn] = (full.gather(1, chosen.unsqueeze(1)).squeeze(1) - log_total[drawn]).float()
        return Sampled(token_ids.tolist(), logprobs.tolist(), *self._top(logits, token_ids, sequences))

    def greedy(self, logits: torch.Tensor) -> Greedy:
        value, index, total = likeliest(logits)
        if self.parallel.world_size == 1:
            return Greedy(index, (value - total).float(), total.double())
        # float64 holds every token id exactly, so that one gather carries all three.
        local = torch.stack([value.double(), (index + self.rows.start).double(), total.double()])
        values, ids, totals = self.parallel.all_gather(local).unbind(1)  # [world_size, num_rows] each
        best = values.argmax(dim=0, keepdim=True)  # the lowest rank on a tie, as one rank's argmax takes the lowest id
        log_total = torch.logsumexp(totals, dim=0)
        logprobs = values.gather(0, best).squeeze(0) - log_total
        return Greedy(ids.gather(0, best).squeeze(0).long(), logprobs.float(), log_total)

    def _top(
        self, logits: torch.Tensor, token_ids: torch.Tensor, sequences: list[SequenceState]
    ) -> tuple[list[list[int]], list[list[float]]]:
        top_ids: list[list[int]] = [[] for _ in sequences]
        top_logprobs: list[list[float]] = [[] for _ in sequences]
        rows = [row for row, sequence in enumerate(sequences) if sequence.num_top_tokens]
        if rows:
            num_top = max(sequences[row].num_top_tokens for row in rows)
            _, found_ids, found_logprobs = self.logprobs.of_tokens(logits[rows], token_ids[rows], num_top)
            for row, ids, logprobs in zip(rows, found_ids.tolist(), found_logprobs.tolist(), strict=True):
                top_ids[row] = ids[: sequences[row].num_top_tokens]
                top_logprobs[row] = logprobs[: sequences[row].num_top_tokens]
        return top_ids, top_logprobs

    def _gather(self, logits: torch.Tensor) -> torch.Tensor:
        """[num_rows, vocab_size_local] → [num_rows, vocab_size]; the last ranks' parts may be shorter."""
        if self.parallel.world_size == 1:
            return logits
        padded = torch.nn.functional.pad(logits, (0, self.parallel.padded_share(self.vocab_size) - logits.shape[1]))
        return torch.cat(self.parallel.all_gather(padded).unbind(0), dim=1)[:, : self.vocab_size]

    def _draw_all(self, logits: torch.Tensor, sequences: list[SequenceState]) -> torch.Tensor:
        """logits [num_rows, vocab_size] → token ids. Ranks other than the first take part in the gather and wait for its
        choice."""
        if not self.parallel.is_first:
            return torch.zeros(len(sequences), dtype=torch.long, device=logits.device)
        rest = iter(sequences)
        parts = logits.split(ROWS_AT_ONCE if logits.device.type == "cpu" else DRAWN_AT_ONCE)
        return torch.cat([_draw(part, list(itertools.islice(rest, len(part)))) for part in parts])


def _draw(logits: torch.Tensor, sequences: list[SequenceState]) -> torch.Tensor:
    """[num_rows, vocab_size] → token ids [num_rows]."""
    filtered = filter_logits(logits, [sequence.sampling for sequence in sequences])
    cumulative = filtered.softmax(dim=1).cumsum(dim=1, dtype=torch.float64)
    totals = cumulative[:, -1:]
    numbers = [[uniform(sequence.sampling.seed, len(sequence.token_ids))] for sequence in sequences]
    thresholds = torch.tensor(numbers, dtype=torch.float64, device=logits.device) * totals
    thresholds = thresholds.minimum(totals.nextafter(torch.zeros_like(totals)))  # it may be rounded up to the very end
    chosen = torch.searchsorted(cumulative, thresholds, right=True).squeeze(1)
    return chosen.clamp_(max=logits.shape[1] - 1)  # of a row that is no numbers; a wrong place would be the device's end


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) for the token at `position`: a pure function, so that no batch, rank or restart changes it.

    splitmix64's finalizer (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators") over both.
    """
    state = _mix((_mix(seed) + (position + 1) * 0x9E3779B97F4A7C15) % 2**64)
    return (state >> 11) / 2**53


def _mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)

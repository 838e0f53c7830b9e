"""Sampler: logits of all ranks → the next token of each row, the same on every rank, and its log-probability.

In: this rank's part of the logits and each row's sequence. Out: token ids, log-probabilities and, where asked for, top tokens.
Greedy rows need three numbers a rank (best value, its id, log-sum-exp), never the gathered vocabulary; sampled rows are
gathered, and chosen by inverting their cumulative distribution at one uniform number that depends on seed and position alone.
"""

from typing import NamedTuple

import torch

from text_generation_server.decoding import Decoding
from text_generation_server.logits import Penalties, Rules, Watermark, filter_logits
from text_generation_server.logprobs import Logprobs
from text_generation_server.parallel import Parallel
from text_generation_server.sequences import SequenceState

BLOCK = 256
ROWS_AT_ONCE = 4  # whose exponentials stay in a processor's cache until they are added up


class Sampled(NamedTuple):
    """For each row its token and what was likely in its place, after penalties and before temperature and filters."""

    token_ids: list[int]
    logprobs: list[float]
    top_ids: list[list[int]]  # as many as the row's sequence asked for
    top_logprobs: list[list[float]]


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

    def sample(self, logits: torch.Tensor, sequences: list[SequenceState]) -> Sampled:
        """logits [num_rows, vocab_size_local] float32, changed in place by penalties and rules."""
        self.penalties.apply(logits, sequences)
        if self.rules:
            self.rules.apply(logits, sequences)
        token_ids, logprobs, log_total = self._greedy(logits)
        drawn = [row for row, sequence in enumerate(sequences) if sequence.sampling.do_sample]
        if drawn:
            full = self._gather(logits[drawn])
            chosen = torch.tensor(
                [self._draw(full[i], sequences[row]) for i, row in enumerate(drawn)], device=logits.device
            )
            self.parallel.broadcast(chosen)
            token_ids[drawn] = chosen
            logprobs[drawn] = (full.gather(1, chosen.unsqueeze(1)).squeeze(1) - log_total[drawn]).float()
        return Sampled(token_ids.tolist(), logprobs.tolist(), *self._top(logits, token_ids, sequences))

    def _greedy(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """→ best token ids [num_rows], their log-probabilities, and the log of the sum of all exponentials."""
        value, index = largest(logits)
        total = log_sum(logits)
        # float64 holds every token id exactly, so that one gather carries all three.
        local = torch.stack([value.double(), (index + self.rows.start).double(), total.double()])
        values, ids, totals = self.parallel.all_gather(local).unbind(1)  # [world_size, num_rows] each
        best = values.argmax(dim=0, keepdim=True)  # the lowest rank on a tie, as one rank's argmax takes the lowest id
        log_total = torch.logsumexp(totals, dim=0)
        logprobs = values.gather(0, best).squeeze(0) - log_total
        return ids.gather(0, best).squeeze(0).long(), logprobs.float(), log_total

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

    def _draw(self, logits: torch.Tensor, sequence: SequenceState) -> int:
        """logits [vocab_size] of one row. Ranks other than the first take part in the gather and wait for its choice."""
        if not self.parallel.is_first:
            return 0
        filtered = filter_logits(logits, sequence.sampling)
        cumulative = torch.softmax(filtered.double(), dim=0).cumsum(0)
        threshold = uniform(sequence.sampling.seed, len(sequence.token_ids)) * cumulative[-1]
        chosen = int(torch.searchsorted(cumulative, threshold, right=True))
        last = int(filtered.isfinite().nonzero()[-1])  # the threshold may round up to the very end
        return min(chosen, last)


def largest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[num_rows, n] → each row's largest entry, and the first place of it. On a CPU torch's own way, which keeps the place in
    mind at every entry, takes ten times as long as the largest entries of blocks and a look into one of them."""
    blocks = logits.unflatten(1, (-1, BLOCK)) if logits.shape[1] % BLOCK == 0 and logits.device.type == "cpu" else None
    if blocks is None:
        value, index = logits.max(dim=1)
        return value, index
    value, block = blocks.amax(dim=2).max(dim=1)
    rows = torch.arange(len(logits))
    return value, block * BLOCK + blocks[rows, block].argmax(dim=1)


def log_sum(logits: torch.Tensor) -> torch.Tensor:
    """[num_rows, n] → the log of each row's sum of exponentials."""
    parts = logits.split(ROWS_AT_ONCE) if logits.device.type == "cpu" else [logits]
    return torch.cat([torch.logsumexp(rows, dim=1) for rows in parts])


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

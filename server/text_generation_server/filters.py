"""Filters: temperature, top-k, top-p and typical-p, which say how likely a token is to be drawn, and whether it may be at all.

In: rows of the whole vocabulary's logits, and each row's parameters. Out: logits again; what is filtered out becomes -inf. In
the order of transformers' warpers, all rows of a step at once; no row's result depends on the others.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from text_generation_server.sampling import Sampling

SMALLEST_TEMPERATURE = 1e-30  # whose inverse is not inf
NUCLEUS = 1024  # tokens among which a top-p's share is looked for first: to sort a vocabulary takes ten times as long

Limit = TypeVar("Limit", int, float)


def filter_logits(logits: torch.Tensor, samplings: Sequence[Sampling]) -> torch.Tensor:
    """logits [num_rows, vocab_size] → the same, one of `samplings` a row."""
    temperatures = _column(logits, [max(sampling.temperature, SMALLEST_TEMPERATURE) for sampling in samplings])
    logits = (logits - logits.amax(dim=1, keepdim=True)).div_(temperatures)  # at most 0: the best token stays there
    _apply(_keep_top_k, logits, [sampling.top_k for sampling in samplings])
    _apply(_keep_top_p, logits, [sampling.top_p for sampling in samplings])
    _apply(_keep_typical, logits, [sampling.typical_p for sampling in samplings])
    return logits


def _apply(
    keep: Callable[[torch.Tensor, list[Limit]], torch.Tensor], logits: torch.Tensor, limits: Sequence[Limit | None]
) -> None:
    """To the rows that have a limit, in place."""
    limited = {row: limit for row, limit in enumerate(limits) if limit is not None}
    if limited:
        rows = list(limited)
        logits[rows] = keep(logits[rows], list(limited.values()))


def _keep_top_k(logits: torch.Tensor, top_ks: list[int]) -> torch.Tensor:
    counts = [min(top_k, logits.shape[1]) for top_k in top_ks]
    largest = logits.topk(max(counts)).values
    smallest_kept = largest.gather(1, torch.tensor(counts, device=logits.device).unsqueeze(1) - 1)
    return logits.masked_fill(logits < smallest_kept, -math.inf)


def _keep_top_p(logits: torch.Tensor, top_ps: list[float]) -> torch.Tensor:
    """The likeliest tokens, until those before one cover its row's share."""
    shares = _column(logits, [max(top_p, torch.finfo(torch.float32).tiny) for top_p in top_ps])
    probabilities = logits.softmax(dim=1)
    _, order = logits.topk(min(NUCLEUS, logits.shape[1]))
    kept = _cut(logits, probabilities.gather(1, order), order, shares)
    wide = (probabilities.gather(1, order).sum(dim=1, keepdim=True) < shares).flatten().nonzero().flatten()
    if len(wide):
        _, order = logits[wide].sort(descending=True)
        kept[wide] = _cut(logits[wide], probabilities[wide].gather(1, order), order, shares[wide])
    return kept


def _cut(logits: torch.Tensor, ordered: torch.Tensor, order: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """`ordered`: the largest probabilities, of the tokens `order`."""
    is_beyond = ordered.cumsum(dim=1) - ordered >= shares
    kept = logits.gather(1, order).masked_fill_(is_beyond, -math.inf)
    return torch.full_like(logits, -math.inf).scatter_(1, order, kept)


def _keep_typical(logits: torch.Tensor, masses: list[float]) -> torch.Tensor:
    """Locally typical sampling (Meister et al. 2022, arXiv:2202.00666): the tokens whose surprise is nearest to the expected
    one, as many as cover a row's mass."""
    logprobs = logits.log_softmax(dim=1)
    probabilities = logprobs.exp()
    entropy = -(probabilities * logprobs).nansum(dim=1, keepdim=True)  # 0 · -inf, of what is filtered out already, counts as 0
    distance = (logprobs + entropy).abs()
    ordered, order = distance.sort(dim=1)
    covered = probabilities.gather(1, order).cumsum(dim=1)
    num_below = (covered < _column(logits, masses)).sum(dim=1, keepdim=True).clamp(max=logits.shape[1] - 1)
    return logits.masked_fill(distance > ordered.gather(1, num_below), -math.inf)


def _column(logits: torch.Tensor, numbers: list[float]) -> torch.Tensor:
    """[num_rows, 1]."""
    return torch.tensor(numbers, dtype=logits.dtype, device=logits.device).unsqueeze(1)

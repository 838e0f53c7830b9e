"""Filters: temperature, top-k, top-p and typical-p, which say how likely a token is to be drawn, and whether it may be at all.

In: rows of the whole vocabulary's logits, and each row's parameters. Out: logits again; what is filtered out becomes -inf. In
the order of transformers' warpers, all rows of a step at once; no row's result depends on the others.
"""

import math
from collections.abc import Sequence

import torch

from text_generation_server.sampling import Sampling

SMALLEST_TEMPERATURE = 1e-30  # whose inverse is not inf
NUCLEUS = 1024  # tokens among which a top-p's share is looked for first: to sort a vocabulary takes ten times as long


def filter_logits(logits: torch.Tensor, samplings: Sequence[Sampling]) -> torch.Tensor:
    """logits [num_rows, vocab_size] → the same, one of `samplings` a row."""
    temperatures = _column(logits, [max(sampling.temperature, SMALLEST_TEMPERATURE) for sampling in samplings])
    logits = (logits - logits.amax(dim=1, keepdim=True)).div_(temperatures)  # at most 0: the best token stays there
    for name, keep in (("top_k", _keep_top_k), ("top_p", _keep_top_p), ("typical_p", _keep_typical)):
        limits = {row: limit for row, sampling in enumerate(samplings) if (limit := getattr(sampling, name)) is not None}
        if limits:
            rows = list(limits)
            logits[rows] = keep(logits[rows], list(limits.values()))
    return logits


def _keep_top_k(logits: torch.Tensor, top_ks: list[int]) -> torch.Tensor:
    counts = [min(top_k, logits.shape[1]) for top_k in top_ks]
    largest = logits.topk(max(counts)).values
    smallest_kept = largest.gather(1, torch.tensor(counts, device=logits.device).unsqueeze(1) - 1)
    return logits.masked_fill(logits < smallest_kept, -math.inf)


def _keep_top_p(logits: torch.Tensor, top_ps: list[float]) -> torch.Tensor:
    """The likeliest tokens, until those before one cover its row's share."""
    shares = _column(logits, [max(top_p, torch.finfo(torch.float32).tiny) for top_p in top_ps])
    log_totals = logits.logsumexp(dim=1, keepdim=True)
    ordered, order = logits.topk(min(NUCLEUS, logits.shape[1]))
    probabilities = (ordered - log_totals).exp()
    kept = _cut(logits, ordered, order, probabilities, shares)
    wide = (probabilities.sum(dim=1, keepdim=True) < shares).flatten().nonzero().flatten()
    if len(wide):
        ordered, order = logits[wide].sort(descending=True)
        kept[wide] = _cut(logits[wide], ordered, order, (ordered - log_totals[wide]).exp(), shares[wide])
    return kept


def _cut(
    logits: torch.Tensor, ordered: torch.Tensor, order: torch.Tensor, probabilities: torch.Tensor, shares: torch.Tensor
) -> torch.Tensor:
    """`ordered`: the largest of the logits, which are at `order`."""
    before = probabilities.cumsum(dim=1) - probabilities
    return torch.full_like(logits, -math.inf).scatter_(1, order, ordered.masked_fill(before >= shares, -math.inf))


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

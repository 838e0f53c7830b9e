"""Filters keep the tokens that transformers' warpers keep, whatever rows are beside one."""

import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from sampling_rows import make_logits, make_sampling
from text_generation_server import filters
from text_generation_server.filters import filter_logits


@pytest.mark.parametrize("typical_p", [None, 0.01, 0.2, 0.95])
@pytest.mark.parametrize("top_p", [None, 0.01, 0.5, 0.95])
@pytest.mark.parametrize("top_k", [None, 1, 5, 1000])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_filters_are_those_of_transformers(
    temperature: float, top_k: int | None, top_p: float | None, typical_p: float | None
) -> None:
    warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(temperature)] if temperature != 1.0 else []
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p else []
    warpers += [TypicalLogitsWarper(typical_p)] if typical_p else []
    for seed in range(5):
        expected = logits = make_logits(seed=seed)
        for warper in warpers:
            expected = warper(torch.tensor([[1]]), expected)
        sampling = make_sampling(temperature=temperature, top_k=top_k, top_p=top_p, typical_p=typical_p)
        found = filter_logits(logits, [sampling])
        torch.testing.assert_close(found.softmax(1), expected.softmax(1))
        assert torch.equal(found.isneginf(), expected.isneginf())


def test_a_rows_filters_do_not_depend_on_the_rows_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some find their share among the likeliest tokens, others must look at all; equals may straddle a border."""
    monkeypatch.setattr(filters, "NUCLEUS", 8)
    logits = make_logits(5).round()
    samplings = [
        make_sampling(top_p=0.05),
        make_sampling(top_p=0.9, temperature=2.0),
        make_sampling(top_k=3, typical_p=0.4),
        make_sampling(),
        make_sampling(top_k=50, top_p=0.99, typical_p=0.9),
    ]
    together = filter_logits(logits, samplings)
    for row, sampling in enumerate(samplings):
        assert torch.equal(together[row], filter_logits(logits[row : row + 1], [sampling])[0])
    assert together.isneginf().sum(1).unique().numel() == 5

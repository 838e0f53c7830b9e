"""Slopes for every head count are those of transformers."""

import pytest
import torch
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from text_generation_server.layers.alibi import alibi_slopes


@pytest.mark.parametrize("num_heads", range(1, 113))
def test_slopes_are_those_of_transformers(num_heads: int) -> None:
    reference = build_alibi_tensor(torch.ones(1, 2, dtype=torch.long), num_heads, torch.float32)
    slopes = alibi_slopes(num_heads)
    assert slopes.dtype == torch.float32
    torch.testing.assert_close(slopes, reference[:, 0, 1], rtol=1e-6, atol=0)


def test_the_176b_model_has_64_slopes_of_the_first_kind_and_48_of_the_second() -> None:
    slopes = alibi_slopes(112)
    assert torch.equal(slopes[:64], alibi_slopes(64))
    assert torch.equal(slopes[64:], alibi_slopes(128)[0::2][:48])

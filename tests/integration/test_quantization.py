"""What fewer bits cost: the perplexity of quantized weights on a text that the float32 model itself wrote."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from runner_steps import all_logits, generate, make_runner
from text_generation_proto.shard_pb2 import SamplingParameters

NUM_TEXTS = 8
NUM_TOKENS = 120


@pytest.fixture(scope="module")
def texts(embedded_model: Path) -> list[list[int]]:
    runner = make_runner(embedded_model)
    first = [1]
    return [
        first + generate(runner, first, NUM_TOKENS, sampling=SamplingParameters(do_sample=True, seed=seed))[0]
        for seed in range(NUM_TEXTS)
    ]


@pytest.fixture(scope="module")
def exact(embedded_model: Path, texts: list[list[int]]) -> float:
    return perplexity(embedded_model, texts, None)


@pytest.mark.parametrize(
    ("quantize", "most"),
    [("bitsandbytes", 1.02), ("bitsandbytes-nf4", 1.10), ("bitsandbytes-fp4", 1.15), ("int8-dynamic", 1.05)],
)
def test_quantized_weights_expect_a_text_nearly_as_well(
    embedded_model: Path, texts: list[list[int]], exact: float, quantize: str, most: float
) -> None:
    ratio = perplexity(embedded_model, texts, quantize) / exact
    assert 1 / most < ratio < most
    assert ratio != 1.0, "nothing was quantized"


def perplexity(model: Path, texts: list[list[int]], quantize: str | None) -> float:
    runner = make_runner(model, quantize=quantize)
    losses = [F.cross_entropy(all_logits(runner, text)[:-1], torch.tensor(text[1:]), reduction="none") for text in texts]
    return math.exp(torch.cat(losses).mean().item())

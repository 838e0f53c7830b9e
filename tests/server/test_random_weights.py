"""A model whose weights are not there: as large, as fast and as shapely as with them."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from runner_steps import generate, make_runner
from text_generation_server.errors import ConfigurationError
from text_generation_server.random_weights import RandomWeights

SHAPE = (300, 48)
LLAMA = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 128,
}


@pytest.fixture
def weights(tmp_path: Path) -> RandomWeights:
    return RandomWeights(tmp_path, torch.device("cpu"), torch.float32)


@pytest.fixture
def bare_bloom(uneven_bloom: Path, tmp_path: Path) -> Path:
    shutil.copy(uneven_bloom / "config.json", tmp_path)
    return tmp_path


def test_a_model_answers_without_its_weights_and_says_the_same_each_time(bare_bloom: Path) -> None:
    token_ids, logprobs = generate(make_runner(bare_bloom, random_weights=True), [5, 6, 7], 8)
    assert len(token_ids) == 8 and all(map(math.isfinite, logprobs))
    assert generate(make_runner(bare_bloom, random_weights=True), [5, 6, 7], 8) == (token_ids, logprobs)


def test_it_takes_as_much_memory_as_with_them(uneven_bloom: Path, bare_bloom: Path) -> None:
    expected = make_runner(uneven_bloom, quantize="bitsandbytes", dtype="bfloat16").model.weight_bytes
    runner = make_runner(bare_bloom, quantize="bitsandbytes", dtype="bfloat16", random_weights=True)
    assert runner.model.weight_bytes == expected > 0


def test_a_llama_needs_nothing_but_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert len(generate(make_runner(tmp_path, random_weights=True), [5, 6, 7], 4)[0]) == 4


def test_a_slice_has_the_size_that_the_files_would_give(weights: RandomWeights) -> None:
    assert weights.load("a.weight", SHAPE, rows=slice(100, 400)).shape == (200, 48)
    assert weights.load_matrix("a.weight", SHAPE, columns=slice(0, 16)).shape == (300, 16)
    assert weights.load("a.bias", SHAPE[:1], rows=slice(0, 5)).shape == (5,)


def test_ranks_draw_different_rows_and_a_tied_head_is_the_table(weights: RandomWeights) -> None:
    first, second = (weights.load_matrix("a.weight", SHAPE, rows=rows) for rows in (slice(0, 150), slice(150, 300)))
    assert not torch.equal(first, second)
    assert torch.equal(weights.map("a.weight", SHAPE, rows=slice(0, 150)).float(), first)


def test_norms_leave_what_they_norm_as_it_is(weights: RandomWeights) -> None:
    assert torch.equal(weights.load("ln_f.weight", (48,)), torch.ones(48))
    assert torch.equal(weights.load("ln_f.bias", (48,)), torch.zeros(48))


def test_models_in_transformers_own_modules_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ConfigurationError, match="only BLOOM, Llama, Mistral and Qwen2"):
        make_runner(tmp_path, random_weights=True)

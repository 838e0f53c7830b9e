"""Keys and values in 8 bits: a quarter of float32's memory, answers near the exact ones, and the same however they come."""

from pathlib import Path

import pytest
import torch

from random_models import save_random_model
from runner_steps import all_logits, generate, make_runner
from text_generation_server.kv_cache import KVCache, KVShape

PROMPT = [1, *range(30, 60), 9, 9, 250, 17]
FLOAT8 = torch.float8_e4m3fn


def test_answers_of_a_trained_model_are_near_those_of_float32(embedded_model: Path) -> None:
    exact, small = make_runner(embedded_model), make_runner(embedded_model, kv_cache_dtype="fp8_e4m3fn")
    errors = (all_logits(small, PROMPT).log_softmax(-1) - all_logits(exact, PROMPT).log_softmax(-1)).abs()
    assert 0 < errors.mean() < 0.05
    assert errors.max() < 0.5  # among 35 times the vocabulary
    (token_ids, logprobs), (expected_ids, expected_logprobs) = generate(small, PROMPT, 8), generate(exact, PROMPT, 8)
    assert token_ids == expected_ids
    assert logprobs == pytest.approx(expected_logprobs, abs=0.1)


def test_memory_holds_four_times_as_many_tokens(random_bloom: Path) -> None:
    exact, small = make_runner(random_bloom), make_runner(random_bloom, kv_cache_dtype="fp8_e4m3fn")
    assert small.num_blocks // exact.num_blocks == 4
    held, smaller = ([*runner.cache.keys, *runner.cache.values] for runner in (exact, small))
    assert sum(t.nbytes for t in held) / exact.num_blocks == 4 * sum(t.nbytes for t in smaller) / small.num_blocks


@pytest.mark.parametrize("model_type", ["llama", "gptj"])
def test_a_prompt_in_chunks_is_answered_like_the_whole_prompt(tmp_path: Path, model_type: str) -> None:
    """Of which no part is attended to before it was rounded."""
    save_random_model(tmp_path, model_type)
    runner = make_runner(tmp_path, kv_cache_dtype="fp8_e4m3fn")
    token_ids, logprobs = generate(runner, PROMPT, 5)
    assert generate(runner, PROMPT, 5, chunk=7) == (token_ids, pytest.approx(logprobs, abs=1e-5))


def test_with_an_encoder_a_sequence_that_comes_again_goes_on_exactly(tmp_path: Path) -> None:
    runner = make_runner(save_random_model(tmp_path, "t5", seq2seq=True), kv_cache_dtype="fp8_e4m3fn")
    token_ids, logprobs = generate(runner, PROMPT, 6)
    again = generate(runner, PROMPT + token_ids[:3], 3, num_prompt_tokens=len(PROMPT))
    assert again == (token_ids[3:], pytest.approx(logprobs[3:], abs=1e-5))


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 65504.0), (FLOAT8, 448.0)])
def test_what_does_not_fit_becomes_the_largest_number_and_what_is_none_zero(dtype: torch.dtype, limit: float) -> None:
    cache = KVCache([KVShape(1, 5, 5)], 1, 2, dtype, torch.device("cpu"))
    key = torch.tensor([[[1e6, -torch.inf, torch.nan, 1.0, -0.5]]])
    cache.write(0, torch.tensor([1]), key, -key)
    assert cache.keys[0][0, 0].tolist() == [[0.0] * 5, [limit, -limit, 0.0, 1.0, -0.5]]
    assert cache.values[0][0, 0, 1].tolist() == [-limit, limit, 0.0, -1.0, 0.5]


def test_numbers_are_kept_to_four_significant_bits() -> None:
    cache = KVCache([KVShape(1, 64, 64)], 1, 1, FLOAT8, torch.device("cpu"))
    key = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(0))
    cache.write(0, torch.tensor([0]), key, key)
    torch.testing.assert_close(cache.keys[0][0, 0].float(), key[0], rtol=1 / 16, atol=1 / 1024)

"""Tokens are chosen as transformers would choose, by numbers that depend on seed and position alone."""

import itertools
import math
from typing import Any

import pytest
import torch
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from text_generation_server.batch import Sampling, SequenceState
from text_generation_server.parallel import Parallel
from text_generation_server.sampler import Sampler, filter_logits, uniform
from two_ranks import sampler_input

VOCAB = 301


def make_sampling(**options: object) -> Sampling:
    defaults = {"do_sample": True, "temperature": 1.0, "top_k": None, "top_p": None, "repetition_penalty": 1.0, "seed": 0}
    return Sampling(**(defaults | options))  # type: ignore[arg-type]


def make_sequence(token_ids: list[int] | None = None, **options: object) -> SequenceState:
    return SequenceState(0, token_ids or [1], make_sampling(**options))


def make_logits(num_rows: int = 1, seed: int = 0, vocab_size: int = VOCAB) -> torch.Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3


def sample(logits: torch.Tensor, *sequences: SequenceState) -> tuple[list[int], list[float]]:
    return Sampler(logits.shape[1], Parallel()).sample(logits.clone(), list(sequences))


def test_greedy_takes_the_best_token_and_its_log_probability() -> None:
    logits = make_logits(3)
    token_ids, logprobs = sample(logits, *[make_sequence(do_sample=False)] * 3)
    assert token_ids == logits.argmax(1).tolist()
    assert logprobs == pytest.approx(logits.log_softmax(1).max(1).values.tolist(), abs=1e-5)


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, [200, 7, 8]] = 2.0
    assert sample(logits, make_sequence(do_sample=False))[0] == [7]


@pytest.mark.parametrize("top_p", [None, 0.01, 0.5, 0.95])
@pytest.mark.parametrize("top_k", [None, 1, 5, 1000])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_filters_are_those_of_transformers(temperature: float, top_k: int | None, top_p: float | None) -> None:
    warpers = [TemperatureLogitsWarper(temperature)] if temperature != 1.0 else []
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p else []
    for seed in range(5):
        expected = logits = make_logits(seed=seed)
        for warper in warpers:
            expected = warper(torch.tensor([[1]]), expected)
        found = filter_logits(logits[0], make_sampling(temperature=temperature, top_k=top_k, top_p=top_p))
        torch.testing.assert_close(found.softmax(0), expected[0].softmax(0))
        assert torch.equal(found.isneginf(), expected[0].isneginf())


@pytest.mark.parametrize("penalty", [0.5, 1.3, 10.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    seen = [3, 3, 3, 150, VOCAB - 1, 0]
    logits = make_logits(2)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([seen]), logits[:1].clone())
    sequences = [make_sequence(seen, do_sample=False, repetition_penalty=penalty), make_sequence(do_sample=False)]
    token_ids, logprobs = sample(logits, *sequences)
    assert token_ids == [int(expected.argmax()), int(logits[1].argmax())]
    assert logprobs[0] == pytest.approx(expected.log_softmax(1).max().item(), abs=1e-5)


def test_uniform_is_a_pure_function_in_the_half_open_unit_interval() -> None:
    seeds = [0, 1, 2, 2**32, 2**63, 2**64 - 1]
    numbers = [uniform(seed, position) for seed in seeds for position in range(200)]
    assert numbers == [uniform(seed, position) for seed in seeds for position in range(200)]
    assert all(0 <= number < 1 for number in numbers)
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("pairs", ["positions of one seed", "neighbouring seeds", "seeds far apart"])
def test_uniform_is_well_spread(pairs: str) -> None:
    """Chi-square over 100 bins: 99 on average, beyond 160 once in ten thousand times. Neighbours must not move together."""
    num = 20_000
    draw = {
        "positions of one seed": lambda i: uniform(42, i),
        "neighbouring seeds": lambda i: uniform(i, 10),
        "seeds far apart": lambda i: uniform(i << 40, 10),
    }[pairs]
    numbers = torch.tensor([draw(i) for i in range(num)], dtype=torch.float64)
    counts = torch.histc(numbers, 100, 0, 1)
    assert ((counts - num / 100) ** 2 / (num / 100)).sum() < 160
    neighbours = torch.corrcoef(torch.stack([numbers[:-1], numbers[1:]]))[0, 1]
    assert abs(neighbours) < 4 / math.sqrt(num)


def test_drawn_tokens_follow_the_distribution() -> None:
    num = 4000
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03])
    sequences = [make_sequence(seed=seed) for seed in range(num)]
    token_ids, _ = sample(probabilities.log().expand(num, -1), *sequences)
    counts = torch.bincount(torch.tensor(token_ids), minlength=5)
    chi_square = ((counts - num * probabilities) ** 2 / (num * probabilities)).sum()
    assert chi_square < 23.5  # beyond that once in ten thousand times, at 4 degrees of freedom


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    logits = make_logits()
    crowd = [make_sequence([1] * length, seed=seed) for length, seed in itertools.product((1, 2, 3), (5, 6, 7))]
    together, logprobs = sample(logits.expand(len(crowd), -1), *crowd)
    for sequence, token_id, logprob in zip(crowd, together, logprobs, strict=True):
        assert sample(logits, sequence) == ([token_id], [pytest.approx(logprob, abs=1e-5)])
    assert len(set(together)) > 2


def test_the_log_probability_is_that_before_temperature_and_filters() -> None:
    logits = make_logits()
    [token_id], [logprob] = sample(logits, make_sequence(temperature=0.1, top_k=3, top_p=0.5, seed=3))
    assert logprob == pytest.approx(logits.log_softmax(1)[0, token_id].item(), abs=1e-5)


def test_greedy_and_drawn_rows_share_a_batch() -> None:
    logits = make_logits(4)
    sequences = [make_sequence(do_sample=index % 2 == 1, seed=index) for index in range(4)]
    token_ids, logprobs = sample(logits, *sequences)
    for index, sequence in enumerate(sequences):
        assert sample(logits[index : index + 1], sequence)[0] == [token_ids[index]]
    expected = logits.log_softmax(1).gather(1, torch.tensor(token_ids)[:, None]).squeeze(1)
    assert logprobs == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1e-40},
        {"temperature": 1e-30},
        {"top_p": 1e-40},
        {"top_p": 1e-7},
        {"top_k": 1},
        {"temperature": 1e-40, "top_k": 5, "top_p": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("scale", [1.0, 100.0, -100.0])
def test_the_narrowest_filters_give_the_best_token(options: dict[str, float], scale: float) -> None:
    logits = make_logits() * scale
    for seed in range(20):
        [token_id], [logprob] = sample(logits, make_sequence(seed=seed, **options))
        assert token_id == int(logits.argmax())
        assert logprob <= 0


@pytest.mark.parametrize("options", [{"temperature": 1e38}, {"temperature": math.inf}, {"repetition_penalty": 1e38}], ids=str)
def test_the_widest_parameters_give_a_valid_token(options: dict[str, float]) -> None:
    logits = make_logits()
    for seed in range(20):
        [token_id], [logprob] = sample(logits, make_sequence([1, 2, 3], seed=seed, **options))
        assert 0 <= token_id < VOCAB
        assert logprob == logprob


def test_the_smallest_repetition_penalty_gives_a_valid_token() -> None:
    for do_sample in (True, False):
        [token_id], _ = sample(make_logits(), make_sequence([1, 2, 3], repetition_penalty=1e-40, do_sample=do_sample))
        assert 0 <= token_id < VOCAB


def test_a_token_without_probability_is_never_drawn() -> None:
    logits = torch.full((1, VOCAB), -math.inf)
    logits[0, [10, 20]] = 1.0
    drawn = {sample(logits, make_sequence(seed=seed))[0][0] for seed in range(200)}
    assert drawn == {10, 20}


def test_a_vocabulary_that_does_not_divide_is_sampled_alike_by_two_ranks(ranks: list[dict[str, Any]]) -> None:
    logits, sequences = sampler_input()
    token_ids, logprobs = sample(logits, *sequences)
    assert token_ids[4] == 100, "the lowest id of equals, though it is another rank's"
    for results in ranks:
        assert results["sampled"][0] == token_ids
        assert results["sampled"][1] == pytest.approx(logprobs, abs=1e-5)

"""Tokens are chosen as transformers would choose, by numbers that depend on seed and position alone."""

import itertools
import math
from typing import Any

import pytest
import torch

from sampling_rows import VOCAB_SIZE, make_logits, make_sampling
from text_generation_server import cpu_kernels
from text_generation_server.logits import Watermark
from text_generation_server.logprobs import likeliest
from text_generation_server.parallel import Parallel
from text_generation_server.sampler import Sampled, Sampler, uniform
from text_generation_server.sequences import SequenceState
from two_ranks import DELTA, GAMMA, sampler_input


def make_sequence(token_ids: list[int] | None = None, num_top_tokens: int = 0, **options: object) -> SequenceState:
    """All of its tokens but the first were generated."""
    return SequenceState(0, token_ids or [1], make_sampling(**options), 1, num_top_tokens)


def sample_all(logits: torch.Tensor, *sequences: SequenceState) -> Sampled:
    return Sampler(logits.shape[1], Parallel(), Watermark(GAMMA, DELTA)).sample(logits.clone(), list(sequences))


def sample(logits: torch.Tensor, *sequences: SequenceState) -> tuple[list[int], list[float]]:
    found = sample_all(logits, *sequences)
    return found.token_ids, found.logprobs


def test_greedy_takes_the_best_token_and_its_log_probability() -> None:
    logits = make_logits(3)
    token_ids, logprobs = sample(logits, *[make_sequence(do_sample=False)] * 3)
    assert token_ids == logits.argmax(1).tolist()
    assert logprobs == pytest.approx(logits.log_softmax(1).max(1).values.tolist(), abs=1e-5)


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, [200, 7, 8]] = 2.0
    assert sample(logits, make_sequence(do_sample=False))[0] == [7]


@pytest.mark.parametrize("do_sample", [False, True])
def test_asking_for_top_tokens_changes_neither_token_nor_log_probability(do_sample: bool) -> None:
    logits = make_logits(3)
    options = {"do_sample": do_sample, "temperature": 1.5, "repetition_penalty": 1.3, "seed": 5}
    silent = sample(logits, *[make_sequence(**options)] * 3)
    found = sample_all(logits, *[make_sequence(num_top_tokens=n, **options) for n in (0, 2, VOCAB_SIZE)])
    assert (found.token_ids, found.logprobs) == silent
    assert [len(ids) for ids in found.top_ids] == [len(values) for values in found.top_logprobs] == [0, 2, VOCAB_SIZE]
    everything = dict(zip(found.top_ids[2], found.top_logprobs[2], strict=True))
    assert everything[found.token_ids[2]] == found.logprobs[2]
    assert sum(map(math.exp, everything.values())) == pytest.approx(1)


def test_top_tokens_are_those_after_penalties_and_before_temperature() -> None:
    logits = make_logits()
    best, second, third = logits[0].topk(3).indices.tolist()
    sequence = make_sequence(num_top_tokens=2, temperature=0.1, top_k=1, logit_bias={best: -100.0})
    found = sample_all(logits, sequence)
    logits[0, best] -= 100
    assert found.token_ids == [second]
    assert found.top_ids == [[second, third]]
    assert found.top_logprobs[0] == pytest.approx(logits.log_softmax(1)[0, [second, third]].tolist(), abs=1e-5)


@pytest.mark.parametrize("do_sample", [False, True])
def test_a_bias_of_a_hundred_forces_a_token_and_of_minus_a_hundred_forbids_it(do_sample: bool) -> None:
    logits = make_logits()
    [best], [worst] = logits.argmax(1).tolist(), logits.argmin(1).tolist()
    for seed in range(50):
        forced = make_sequence(do_sample=do_sample, seed=seed, logit_bias={worst: 100.0})
        forbidden = make_sequence(do_sample=do_sample, seed=seed, temperature=0.2, logit_bias={best: -100.0})
        [[first, second], _] = sample(logits.expand(2, -1), forced, forbidden)
        assert first == worst
        assert second != best


def test_a_watermark_draws_from_the_green_list_more_often() -> None:
    """With delta 4, a green quarter of equal tokens has exp(4) / (exp(4) + 3) of the probability: 0.948."""
    num = 1000
    token_ids, _ = sample(torch.zeros(num, VOCAB_SIZE), *[make_sequence([7], seed=s, watermark=True) for s in range(num)])
    plain, _ = sample(torch.zeros(num, VOCAB_SIZE), *[make_sequence([7], seed=s) for s in range(num)])
    green = set(Watermark(GAMMA, DELTA).green_list(7, VOCAB_SIZE).tolist())
    assert sum(token_id in green for token_id in token_ids) / num == pytest.approx(0.948, abs=0.03)
    assert sum(token_id in green for token_id in plain) / num == pytest.approx(0.25, abs=0.05)


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


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1e38},
        {"temperature": math.inf},
        {"repetition_penalty": 1e38},
        {"repetition_penalty": 1e-40, "frequency_penalty": 3e38},
        {"frequency_penalty": -3e38, "presence_penalty": -3e38},
        {"logit_bias": dict.fromkeys(range(VOCAB_SIZE), -3e38), "repetition_penalty": 1e38},
        {"typical_p": 1e-40},
    ],
    ids=str,
)
def test_the_widest_parameters_give_a_valid_token(options: dict[str, float]) -> None:
    logits = make_logits()
    for seed in range(20):
        [token_id], [logprob] = sample(logits, make_sequence([0, 2, 2, 3, 4, 5], seed=seed, **options))
        assert 0 <= token_id < VOCAB_SIZE
        assert math.isfinite(logprob)


def test_the_smallest_repetition_penalty_gives_a_valid_token() -> None:
    for do_sample in (True, False):
        seen = [int(make_logits().argmax()), 1, 2, 3]
        [token_id], [logprob] = sample(make_logits(), make_sequence(seen, repetition_penalty=1e-40, do_sample=do_sample))
        assert 0 <= token_id < VOCAB_SIZE
        assert math.isfinite(logprob)


def test_a_row_that_is_no_numbers_gives_some_token_and_leaves_the_others_alone() -> None:
    logits, sequences = make_logits(3), [make_sequence(seed=5, top_p=0.9)] * 3
    expected, _ = sample(logits, *sequences)
    logits[1] = math.nan
    token_ids, _ = sample(logits, *sequences)
    assert token_ids[::2] == expected[::2]
    assert 0 <= token_ids[1] < VOCAB_SIZE


def test_a_token_without_probability_is_never_drawn() -> None:
    logits = torch.full((1, VOCAB_SIZE), -math.inf)
    logits[0, [10, 20]] = 1.0
    drawn = {sample(logits, make_sequence(seed=seed))[0][0] for seed in range(200)}
    assert drawn == {10, 20}


def test_a_vocabulary_that_does_not_divide_is_sampled_alike_by_two_ranks(ranks: list[dict[str, Any]]) -> None:
    logits, sequences = sampler_input()
    token_ids, logprobs, top_ids, top_logprobs = sample_all(logits, *sequences)
    assert token_ids[4] == 100, "the lowest id of equals, though it is another rank's"
    assert top_ids[4] == [100, 200]
    assert token_ids[7] == 151, "a bias on either rank's last token"
    for results in ranks:
        assert results["sampled"][0] == token_ids
        assert results["sampled"][1] == pytest.approx(logprobs, abs=1e-5)
        assert results["sampled"][2] == top_ids
        for found, expected in zip(results["sampled"][3], top_logprobs, strict=True):
            assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("has_kernels", [True, False])
@pytest.mark.parametrize("num_columns", [1, 255, 256, 4096, 4097, 10000])
def test_the_largest_entry_is_found_and_on_a_tie_the_first(
    num_columns: int, has_kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_kernels:
        monkeypatch.setattr(cpu_kernels, "library", lambda: None)
    logits = torch.randint(0, 5, (5, num_columns)).float()
    logits[1, num_columns - 1] = 9.0
    logits[2] = -math.inf
    logits[3] = torch.randn(num_columns) * 100
    logits[4, num_columns // 2] = math.nan
    value, index, total = likeliest(logits)
    assert torch.equal(value[:4], logits[:4].amax(dim=1))
    assert index[:4].tolist() == [row.tolist().index(max(row.tolist())) for row in logits[:4]]
    exact = logits[[0, 1, 3]].double().logsumexp(dim=1)
    torch.testing.assert_close(total[[0, 1, 3]].double(), exact, rtol=1e-6, atol=1e-5)
    assert value[4].isnan() and total[4].isnan() and 0 <= index[4] < num_columns

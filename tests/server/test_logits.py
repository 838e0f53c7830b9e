"""Penalties and biases do to logits what transformers, OpenAI's definition and the watermark's paper say."""

import itertools

import pytest
import torch
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from sampling_rows import VOCAB_SIZE, make_logits, make_sampling
from text_generation_server.logits import Penalties, Watermark
from text_generation_server.sequences import SequenceState

WATERMARK = Watermark(gamma=0.25, delta=4.0)
TOKEN_IDS = [3, 150, 7, 7, 150, 300, 7]
NUM_PROMPT_TOKENS = 2
GENERATED = {7: 3, 150: 1, 300: 1}


def penalize(logits: torch.Tensor, *sequences: SequenceState, rows: slice = slice(0, VOCAB_SIZE)) -> torch.Tensor:
    changed = logits[:, rows].clone()
    Penalties(VOCAB_SIZE, rows, WATERMARK).apply(changed, list(sequences))
    return changed


def make_sequence(**options: object) -> SequenceState:
    return SequenceState(0, TOKEN_IDS, make_sampling(**options), NUM_PROMPT_TOKENS)


@pytest.mark.parametrize("penalty", [0.5, 1.3, 10.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    logits = make_logits()
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([TOKEN_IDS]), logits.clone())
    torch.testing.assert_close(penalize(logits, make_sequence(repetition_penalty=penalty)), expected)


@pytest.mark.parametrize(("frequency", "presence"), [(0.5, 0.0), (0.0, 0.5), (1.5, -2.0)])
def test_frequency_and_presence_penalties_count_generated_tokens_only(frequency: float, presence: float) -> None:
    logits = make_logits()
    found = penalize(logits, make_sequence(frequency_penalty=frequency, presence_penalty=presence))
    for token_id, count in GENERATED.items():
        logits[0, token_id] -= count * frequency + presence
    torch.testing.assert_close(found, logits)


def test_without_generated_tokens_there_is_nothing_to_penalize() -> None:
    sequence = SequenceState(0, TOKEN_IDS, make_sampling(frequency_penalty=2.0, presence_penalty=2.0), len(TOKEN_IDS))
    assert torch.equal(penalize(make_logits(), sequence), make_logits())


def test_a_bias_is_added_to_the_logits_it_names() -> None:
    expected = make_logits()
    expected[0, 0] += 2.5
    expected[0, VOCAB_SIZE - 1] -= 7
    assert torch.equal(penalize(make_logits(), make_sequence(logit_bias={0: 2.5, VOCAB_SIZE - 1: -7.0})), expected)


def test_the_green_list_is_a_share_of_the_vocabulary_chosen_by_the_token_before() -> None:
    """The key is the paper's: whoever detects the watermark makes the same list from it."""
    generator = torch.Generator().manual_seed(15485863 * TOKEN_IDS[-1])
    expected = torch.randperm(VOCAB_SIZE, generator=generator)[: int(0.25 * VOCAB_SIZE)]
    shifts = penalize(make_logits(), make_sequence(watermark=True)) - make_logits()
    assert set(shifts[0].round().nonzero().flatten().tolist()) == set(expected.tolist())
    torch.testing.assert_close(shifts[0, expected], torch.full((75,), 4.0))
    lists = [set(WATERMARK.green_list(token_id, VOCAB_SIZE).tolist()) for token_id in (0, 1, 2, VOCAB_SIZE - 1)]
    assert all(first != second for first, second in itertools.combinations(lists, 2))


def test_biases_and_watermark_come_before_the_repetition_penalty_and_that_before_the_others() -> None:
    logits = torch.zeros(1, VOCAB_SIZE)
    sequence = make_sequence(
        logit_bias={7: 8.0}, watermark=True, repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25
    )
    green = 4.0 if 7 in WATERMARK.green_list(7, VOCAB_SIZE) else 0.0
    assert penalize(logits, sequence)[0, 7].item() == (8.0 + green) / 2 - (3 * 0.5 + 0.25)


def test_rows_that_ask_for_nothing_stay_as_they_are_beside_others() -> None:
    logits = make_logits(3)
    found = penalize(logits, make_sequence(), make_sequence(presence_penalty=1.0, watermark=True), make_sequence())
    assert torch.equal(found[[0, 2]], logits[[0, 2]])
    assert not torch.equal(found[1], logits[1])


@pytest.mark.parametrize("border", [1, 7, 8, 151, 300])
def test_ranks_with_a_part_of_the_vocabulary_change_it_as_one_would(border: int) -> None:
    sequences = [
        make_sequence(repetition_penalty=1.5),
        make_sequence(frequency_penalty=1.0, presence_penalty=0.5),
        make_sequence(logit_bias={7: 3.0, 151: -2.0, 300: 1.0}, watermark=True),
    ]
    logits = make_logits(3)
    parts = [penalize(logits, *sequences, rows=rows) for rows in (slice(0, border), slice(border, VOCAB_SIZE))]
    assert torch.equal(torch.cat(parts, dim=1), penalize(logits, *sequences))

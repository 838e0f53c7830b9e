"""A step becomes tensors; a step that contradicts what was said before is refused, and its sequences with it."""

import math
from typing import Any

import pytest
import torch

from text_generation_proto.shard_pb2 import SamplingParameters, Step
from text_generation_server.batch import Batch
from text_generation_server.block_tables import BlockTables
from text_generation_server.errors import StepError
from text_generation_server.sampling import Sampling
from text_generation_server.sequences import Sequences

CPU = torch.device("cpu")


@pytest.fixture
def sequences() -> Sequences:
    """Knows sequence 1, five tokens in blocks 3 and 0, of four tokens each."""
    made = Sequences(block_size=4, num_blocks=10, max_batch_tokens=8, vocab_size=1000)
    step = Step()
    step.add.add(id=1, token_ids=[11, 12, 13, 14, 15])
    step.work.add(sequence_id=1, start=0, length=4, block_ids=[3, 0])
    made.apply(step)
    return made


def one_work(**fields: object) -> Step:
    step = Step()
    step.work.add(**({"sequence_id": 1, "start": 4, "length": 1} | fields))
    return step


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (one_work(sequence_id=2), "sequence 2 was never added"),
        (one_work(length=2), r"sequence 1: cannot compute \[4, 6\) of 5 tokens"),
        (one_work(length=0), r"sequence 1: cannot compute \[4, 4\) of 5 tokens"),
        (one_work(start=9), r"sequence 1: cannot compute \[9, 10\) of 5 tokens"),
        (one_work(block_ids=[10]), "sequence 1: there are only 10 blocks"),
        (Step(drop=[1], work=one_work().work), "sequence 1 was never added"),
    ],
)
def test_a_step_that_does_not_fit_is_refused(sequences: Sequences, step: Step, message: str) -> None:
    with pytest.raises(StepError, match=message):
        sequences.apply(step)


def test_work_past_the_sequences_blocks_is_refused(sequences: Sequences) -> None:
    step = Step()
    step.add.add(id=2, token_ids=[1] * 6)
    step.work.add(sequence_id=2, start=0, length=5, block_ids=[7])
    with pytest.raises(StepError, match="sequence 2: position 4 is past its 1 blocks"):
        sequences.apply(step)


def test_a_step_of_more_tokens_than_the_budget_is_refused(sequences: Sequences) -> None:
    step = one_work()
    step.add.add(id=2, token_ids=[1] * 8)
    step.work.add(sequence_id=2, start=0, length=8, block_ids=[7, 8])
    with pytest.raises(StepError, match="a step may compute at most 8 tokens"):
        sequences.apply(step)


def test_a_sequence_cannot_be_added_twice(sequences: Sequences) -> None:
    step = Step()
    step.add.add(id=1, token_ids=[1])
    with pytest.raises(StepError, match="sequence 1 is added twice"):
        sequences.apply(step)


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ({"token_ids": [1000]}, "sequence 2: token ids must be less than 1000"),
        ({"sampling": SamplingParameters(logit_bias={1000: 1.0})}, "sequence 2: token ids must be less than 1000"),
        ({"num_top_tokens": 1001}, "sequence 2: there are only 1000 tokens to be top tokens"),
        ({"num_prompt_tokens": 3}, "sequence 2: its 2 tokens have no prompt of 3"),
    ],
)
def test_a_new_sequence_that_asks_for_what_is_not_there_is_refused(
    sequences: Sequences, new: dict[str, Any], message: str
) -> None:
    step = Step()
    step.add.add(**({"id": 2, "token_ids": [1, 2]} | new))
    with pytest.raises(StepError, match=message):
        sequences.apply(step)


def test_a_new_sequences_tokens_are_its_prompt_unless_it_says_how_many_are(sequences: Sequences) -> None:
    step = Step()
    step.add.add(id=2, token_ids=[1, 2, 3])
    step.add.add(id=3, token_ids=[1, 2, 3], num_prompt_tokens=1)
    for sequence_id in (2, 3):
        step.work.add(sequence_id=sequence_id, start=0, length=3, block_ids=[sequence_id])
    assert [state.generated for state in (chunk.sequence for chunk in sequences.apply(step))] == [[], [2, 3]]


def test_prompt_rows_are_those_before_a_token_of_the_prompt(sequences: Sequences) -> None:
    """A prompt of five of six tokens, in chunks of which the last one has no more to tell."""
    found = []
    for start, length in ((0, 2), (2, 2), (4, 2)):
        step = one_work(start=0, length=4)
        if start == 0:
            step.add.add(id=2, token_ids=range(20, 26), num_prompt_tokens=5, prompt_logprobs=True)
        step.work.add(sequence_id=2, start=start, length=length, block_ids=[5, 6] if start == 0 else ())
        batch = Batch.of(sequences.apply(step), BlockTables(4, CPU))
        found += [(list(prompt.positions), list(prompt.rows), prompt.target_ids) for prompt in batch.prompts]
    assert found == [([1, 2], [4, 5], [21, 22]), ([3, 4], [4, 5], [23, 24])]


def test_a_sequence_can_be_dropped_and_added_again_in_one_step(sequences: Sequences) -> None:
    step = Step(drop=[1])
    step.add.add(id=1, token_ids=[21, 22])
    step.work.add(sequence_id=1, start=0, length=2, block_ids=[5])
    [state] = [chunk.sequence for chunk in sequences.apply(step)]
    assert (state.token_ids, state.block_table) == ([21, 22], [5])


def test_dropping_what_is_not_known_is_harmless(sequences: Sequences) -> None:
    assert sequences.apply(Step(drop=[99])) == []


def test_sequences_of_a_failed_step_are_passed_over_until_they_are_dropped(sequences: Sequences) -> None:
    sequences.fail(one_work())
    assert sequences.apply(one_work()) == []
    assert sequences.apply(one_work(start=5)) == []
    step = Step(drop=[1])
    step.add.add(id=1, token_ids=[1])
    step.work.add(sequence_id=1, start=0, length=1, block_ids=[0])
    assert len(sequences.apply(step)) == 1


def test_a_failed_sequence_does_not_hold_up_the_others(sequences: Sequences) -> None:
    sequences.fail(one_work(sequence_id=2))
    step = one_work()
    step.work.add(sequence_id=2, start=0, length=1)
    assert [chunk.sequence.id for chunk in sequences.apply(step)] == [1]


def test_nothing_is_left_after_clear(sequences: Sequences) -> None:
    sequences.clear()
    with pytest.raises(StepError, match="never added"):
        sequences.apply(one_work())


def test_sequences_of_one_token_come_first_and_rows_to_sample_are_named(sequences: Sequences) -> None:
    step = Step()
    step.add.add(id=2, token_ids=[21, 22, 23])
    step.work.add(sequence_id=2, start=1, length=2, block_ids=[6], sample=True)
    step.work.add(sequence_id=1, start=4, length=1, sample=True)
    batch = Batch.of(sequences.apply(step), BlockTables(4, CPU))
    assert batch.token_ids.tolist() == [15, 22, 23]
    assert batch.context.slot_mapping.tolist() == [0, 6 * 4 + 1, 6 * 4 + 2]
    assert batch.context.block_tables.tolist() == [[3, 0], [6, 0]]
    assert batch.context.query_lengths == [1, 2]
    assert batch.context.context_lengths == [5, 3]
    assert batch.context.num_decodes == 1
    assert batch.sampled_rows.tolist() == [0, 2]
    assert batch.context.wanted_rows is batch.sampled_rows
    assert [state.id for state in batch.sampled] == [1, 2]


def test_chunks_in_the_middle_of_a_prompt_are_not_sampled(sequences: Sequences) -> None:
    batch = Batch.of(sequences.apply(one_work()), BlockTables(4, CPU))
    assert batch.sampled == []
    assert batch.sampled_rows.shape == (0,)
    assert batch.context.pick_wanted(batch.token_ids).shape == (0,)


def test_parameters_that_are_not_given_are_off() -> None:
    expected = Sampling(do_sample=False, temperature=1.0, top_k=None, top_p=None, repetition_penalty=1.0, seed=0)
    assert Sampling.from_proto(SamplingParameters()) == expected
    assert Sampling.from_proto(SamplingParameters(top_p=1.0, typical_p=1.0, frequency_penalty=0.0)) == expected
    assert not expected.changes_logits


def test_parameters_that_are_given_are_taken() -> None:
    message = SamplingParameters(
        do_sample=True, temperature=0.5, top_k=3, top_p=0.25, repetition_penalty=1.5, seed=2**64 - 1
    )
    assert Sampling.from_proto(message) == Sampling(True, 0.5, 3, 0.25, 1.5, 2**64 - 1)
    message = SamplingParameters(
        frequency_penalty=-0.5, presence_penalty=2.0, typical_p=0.25, logit_bias={7: -100.0, 0: 1.5}, watermark=True
    )
    found = Sampling.from_proto(message)
    assert (found.frequency_penalty, found.presence_penalty, found.typical_p, found.watermark) == (-0.5, 2.0, 0.25, True)
    assert found.logit_bias == {7: -100.0, 0: 1.5}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repetition_penalty", 1.1),
        ("frequency_penalty", 0.1),
        ("presence_penalty", -1),
        ("logit_bias", {3: 1}),
        ("watermark", True),
    ],
)
def test_what_moves_logits_is_not_passed_over(name: str, value: Any) -> None:
    assert Sampling.from_proto(SamplingParameters(**{name: value})).changes_logits


@pytest.mark.parametrize("name", ["temperature", "repetition_penalty", "top_p"])
@pytest.mark.parametrize("value", [0.0, -1.0, -math.inf])
def test_a_parameter_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(StepError, match=f"{name}.* must be strictly positive"):
        Sampling.from_proto(SamplingParameters(**{name: value}))


@pytest.mark.parametrize("name", ["temperature", "repetition_penalty"])
def test_what_is_no_number_is_refused(name: str) -> None:
    with pytest.raises(StepError, match="strictly positive"):
        Sampling.from_proto(SamplingParameters(**{name: math.nan}))


@pytest.mark.parametrize("value", [0.0, -0.5, 1.5, math.nan, math.inf])
def test_a_typical_p_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(StepError, match=r"typical_p must be in \(0, 1\]"):
        Sampling.from_proto(SamplingParameters(typical_p=value))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_infinite_penalties_and_biases_are_refused(value: float) -> None:
    for options in ({"frequency_penalty": value}, {"presence_penalty": value}, {"logit_bias": {1: value}}):
        with pytest.raises(StepError, match="must be finite"):
            Sampling.from_proto(SamplingParameters(**options))


def test_a_top_k_of_zero_is_refused() -> None:
    with pytest.raises(StepError, match="top_k"):
        Sampling.from_proto(SamplingParameters(top_k=0))

"""Recorded decode steps give the tokens of steps that are not, whatever the batch and what it asks for."""

from pathlib import Path
from typing import Any

import pytest
import torch

from triton_interpreter import DEVICE  # isort: skip  before what has kernels
from random_models import save_random_model
from recorded_steps import Again, with_graphs
from runner_steps import BLOCKS_PER_SEQUENCE, make_runner, make_step
from text_generation_proto.shard_pb2 import SamplingParameters, Step
from text_generation_server.batch import Batch
from text_generation_server.runner import Runner
from tiny_models import save_random_bloom

pytestmark = pytest.mark.skipif(DEVICE.type == "cuda", reason="the runner here is one on a CPU")

PROMPTS = [[5, 6, 7], [40], [3, 1, 4, 1]]  # the interpreter is slow
SAMPLINGS = [
    SamplingParameters(),
    SamplingParameters(repetition_penalty=1.5),
    SamplingParameters(do_sample=True, seed=7),
]
NUM_TOKENS = 4
BURST = 15  # more than what is left of a first block


@pytest.fixture(scope="module")
def small_bloom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_bloom(tmp_path_factory.mktemp("small-bloom"), 2, 1)


def answer(runner: Runner, num_sequences: int) -> tuple[list[tuple[int, int]], list[float]]:
    """All sequences at once, the prompts in one step: who got which token, and the log-probabilities."""
    step, tokens = Step(), []
    for number in range(num_sequences):
        prompt, sampling = PROMPTS[number % 3], SAMPLINGS[number % 3]
        step.add.add(id=number, token_ids=prompt, sampling=sampling)
        blocks = range(number * BLOCKS_PER_SEQUENCE, (number + 1) * BLOCKS_PER_SEQUENCE)
        step.work.add(sequence_id=number, start=0, length=len(prompt), block_ids=blocks, sample=True)
    for index in range(NUM_TOKENS):
        result = runner.execute(step)
        assert not result.error, result.error
        tokens += result.tokens
        step = Step()
        for number in range(num_sequences):
            step.work.add(sequence_id=number, start=len(PROMPTS[number % 3]) + index, length=1, sample=True)
    runner.reset()
    return [(token.sequence_id, token.token_id) for token in tokens], [token.logprob for token in tokens]


def greedy_in_one_step(runner: Runner, num_sequences: int, **asked: Any) -> dict[int, list[tuple[int, float]]]:
    """Prompts in one step, all other tokens in a second one."""
    prompts = {number: PROMPTS[number % 3] for number in range(num_sequences)}
    result = runner.execute(make_step(add=prompts, work=[(n, 0, len(ids)) for n, ids in prompts.items()], **asked))
    step = make_step(work=[(n, len(ids), 1) for n, ids in prompts.items()])
    step.num_iterations = BURST
    tokens = [*result.tokens, *runner.execute(step).tokens]
    runner.reset()
    return {n: [(token.token_id, token.logprob) for token in tokens if token.sequence_id == n] for n in prompts}


def _token_ids(found: dict[int, list[tuple[int, float]]]) -> dict[int, list[int]]:
    return {number: [token_id for token_id, _ in tokens] for number, tokens in found.items()}


def check_answers(runner: Runner, num_sequences: int, folder: Path) -> None:
    """They are those of a runner that records nothing, and whose attention is another."""
    tokens, logprobs = answer(runner, num_sequences)
    expected_tokens, expected_logprobs = answer(make_runner(folder), num_sequences)
    assert tokens == expected_tokens
    assert logprobs == pytest.approx(expected_logprobs, abs=1e-3)


@pytest.mark.parametrize("num_sequences", [1, 3, 4])
def test_answers_are_those_of_steps_that_are_not_recorded(small_bloom: Path, num_sequences: int) -> None:
    recorder = Again()
    runner = with_graphs(make_runner(small_bloom), [1, 2, 4], recorder)
    check_answers(runner, num_sequences, small_bloom)
    assert recorder.num_plays == NUM_TOKENS - 1


def test_a_llamas_steps_can_be_recorded_too(tmp_path: Path) -> None:
    folder = save_random_model(tmp_path, "llama")
    recorder = Again()
    runner = with_graphs(make_runner(folder), [4], recorder)
    assert runner.model.fixed_launches
    check_answers(runner, 3, folder)
    assert recorder.num_plays == NUM_TOKENS - 1


@pytest.mark.parametrize("num_sequences", [1, 3])
def test_iterations_of_one_step_go_on_by_themselves(
    small_bloom: Path, num_sequences: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the end of a block, in a record with rows to spare: nothing is laid out between them."""
    recorder = Again()
    runner = with_graphs(make_runner(small_bloom), [4], recorder)
    laid_out, layout = [], Batch.of
    monkeypatch.setattr(Batch, "of", lambda *arguments: laid_out.append(1) or layout(*arguments))
    found = greedy_in_one_step(runner, num_sequences)
    assert (recorder.num_plays, len(laid_out)) == (BURST, 2)
    expected = greedy_in_one_step(make_runner(small_bloom), num_sequences)
    assert _token_ids(found) == _token_ids(expected)
    for number, tokens in expected.items():
        logprobs = [logprob for _, logprob in found[number]]
        assert logprobs == pytest.approx([logprob for _, logprob in tokens], abs=1e-3)


@pytest.mark.parametrize(
    "asked",
    [{"num_top_tokens": 2}, {"sampling": SAMPLINGS[1]}, {"sampling": SAMPLINGS[2]}],
    ids=["top tokens", "penalty", "sampled"],
)
def test_iterations_with_more_to_do_than_the_likeliest_token_come_one_by_one(small_bloom: Path, asked: dict[str, Any]) -> None:
    recorder = Again()
    runner = with_graphs(make_runner(small_bloom), [1, 4], recorder)
    found, expected = (greedy_in_one_step(each, 2, **asked) for each in (runner, make_runner(small_bloom)))
    assert recorder.num_plays == BURST
    assert _token_ids(found) == _token_ids(expected)


def test_a_batch_larger_than_any_that_was_recorded_does_without(small_bloom: Path) -> None:
    recorder = Again()
    runner = with_graphs(make_runner(small_bloom), [1, 2], recorder)
    check_answers(runner, 3, small_bloom)
    assert recorder.num_plays == 0


def test_rows_that_a_batch_does_not_fill_leave_all_keys_and_values_alone(small_bloom: Path) -> None:
    runner = with_graphs(make_runner(small_bloom), [4], Again())
    answer(runner, 4)  # what lies in the rows from now on
    others = torch.arange(BLOCKS_PER_SEQUENCE, runner.num_blocks)
    before = [keys[others].clone() for keys in runner.cache.keys]
    answer(runner, 1)
    for keys, expected in zip(runner.cache.keys, before, strict=True):
        torch.testing.assert_close(keys[others], expected)


def test_from_the_first_that_cannot_be_recorded_there_are_no_more(small_bloom: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Again(refused=(2,))
    runner = with_graphs(make_runner(small_bloom), [1, 2, 4], recorder)
    assert runner.graphs and runner.graphs.sizes == [4]
    assert "steps of 2 sequences could not be recorded" in caplog.text
    check_answers(runner, 1, small_bloom)
    assert recorder.num_plays == NUM_TOKENS - 1

"""Recorded decode steps give the tokens of steps that are not, whatever the batch and what it asks for.

A record is played here by running its function again: it sees the same memory, as CUDA's graphs do.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from triton_interpreter import DEVICE  # isort: skip  before what has kernels
from random_models import save_random_model
from runner_steps import BLOCKS_PER_SEQUENCE, make_runner
from text_generation_proto.shard_pb2 import SamplingParameters, Step
from text_generation_server.attention.paged_triton import TritonAttention
from text_generation_server.decode_graphs import DecodeGraphs
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


@pytest.fixture(scope="module")
def small_bloom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_bloom(tmp_path_factory.mktemp("small-bloom"), 2, 1)


class Again:
    """A recorder that counts what it records and plays."""

    def __init__(self, refused: tuple[int, ...] = ()) -> None:
        self.refused = refused
        self.num_records = self.num_plays = 0

    def record(self, function: Callable[[], None]) -> Callable[[], object]:
        self.num_records += 1
        if self.num_records in self.refused:
            raise RuntimeError("operation not permitted when stream is capturing")
        function()

        def play() -> None:
            self.num_plays += 1
            function()

        return play


@torch.inference_mode()
def with_graphs(runner: Runner, sizes: list[int], recorder: Again) -> Runner:
    attention = runner.attention
    runner.attention = TritonAttention(runner.cache, attention.slopes)
    runner.graphs = DecodeGraphs(
        runner.model, runner.attention, runner.sampler, sizes, BLOCKS_PER_SEQUENCE, runner.device, recorder
    )
    return runner


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

"""The runner keeps going: a step that fails takes its own sequences with it, and the next step works."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from runner_steps import generate, make_runner, make_step
from text_generation_proto.shard_pb2 import SamplingParameters, Step, StepResult
from text_generation_server import device
from text_generation_server.config import ShardConfig
from text_generation_server.errors import ConfigurationError, ShardLost
from text_generation_server.logits import Watermark
from text_generation_server.runner import CUDA_MEMORY_SHARE, Runner

PROMPT = [1, 30, 31, 32]


@pytest.fixture(scope="module")
def runner(random_bloom: Path) -> Runner:
    return make_runner(random_bloom, max_batch_tokens=64)


@pytest.fixture(autouse=True)
def forget(runner: Runner) -> None:
    runner.reset()


def test_an_error_inside_the_forward_fails_the_step_and_no_other(runner: Runner) -> None:
    expected, _ = generate(runner, PROMPT, 2)
    beyond_the_vocabulary = 1000
    first = runner.execute(make_step(4, add={0: PROMPT}, work=[(0, 0, 4)]))
    failed = runner.execute(make_step(5, add={1: [beyond_the_vocabulary]}, work=[(1, 0, 1)]))
    second = runner.execute(make_step(6, work=[(0, 4, 1)]))
    assert failed.id == 5
    assert failed.error and "\n" not in failed.error
    assert not failed.tokens
    assert not first.error and not second.error
    assert [first.tokens[0].token_id, second.tokens[0].token_id] == expected


def test_steps_that_were_under_way_pass_over_what_failed(runner: Runner) -> None:
    assert runner.execute(make_step(0, add={1: [1000]}, work=[(1, 0, 1)])).error
    result = runner.execute(make_step(1, add={0: PROMPT}, work=[(1, 1, 1), (0, 0, 4)]))
    assert not result.error
    assert [token.sequence_id for token in result.tokens] == [0]


def test_work_on_an_unknown_sequence_is_the_drivers_mistake(runner: Runner) -> None:
    result = runner.execute(make_step(7, work=[(3, 0, 1)]))
    assert result.error == "sequence 3 was never added"
    assert not runner.execute(make_step(8, drop=[3])).error


def test_too_many_tokens_are_refused_before_anything_is_computed(runner: Runner) -> None:
    result = runner.execute(make_step(add={0: [5] * 65}, work=[(0, 0, 65)]))
    assert result.error == "a step may compute at most 64 tokens"


def test_a_sequence_with_bad_parameters_fails_its_step(runner: Runner) -> None:
    step = make_step(add={0: PROMPT}, work=[(0, 0, 4)], sampling=SamplingParameters(temperature=-1))
    assert "strictly positive" in runner.execute(step).error


def test_an_empty_step_is_answered(runner: Runner) -> None:
    result = runner.execute(Step(id=12))
    assert (result.id, result.error, len(result.tokens)) == (12, "", 0)


def test_after_reset_the_same_ids_are_new(runner: Runner) -> None:
    step = make_step(add={0: PROMPT}, work=[(0, 0, 4)])
    first = runner.execute(step)
    assert "added twice" in runner.execute(step).error
    runner.reset()
    assert runner.execute(step).tokens == first.tokens


def test_results_come_for_sampled_work_only(runner: Runner) -> None:
    assert not runner.execute(make_step(0, add={0: PROMPT}, work=[(0, 0, 3)], sample=False)).tokens
    assert len(runner.execute(make_step(1, work=[(0, 3, 1)])).tokens) == 1


def test_a_sampled_answer_is_continued_where_it_stopped(runner: Runner) -> None:
    """Preemption and restart: prompt and its length, seed and the tokens so far are enough."""
    penalties = {"repetition_penalty": 1.2, "frequency_penalty": 3.0, "presence_penalty": -2.0, "watermark": True}
    sampling = SamplingParameters(do_sample=True, temperature=1.5, seed=7, **penalties)
    whole, logprobs = generate(runner, PROMPT, 12, sampling=sampling)
    again = generate(runner, PROMPT + whole[:5], 7, sampling=sampling, num_prompt_tokens=len(PROMPT))
    assert again == (whole[5:], pytest.approx(logprobs[5:], abs=1e-4))
    other, _ = generate(runner, PROMPT, 12, sampling=SamplingParameters(do_sample=True, temperature=1.5, seed=8))
    assert whole != other


def test_a_frequency_penalty_ends_a_loop_and_counts_no_prompt(runner: Runner) -> None:
    looping = SamplingParameters(logit_bias={40: 100.0})
    assert generate(runner, PROMPT, 4, sampling=looping)[0] == [40] * 4
    penalized = SamplingParameters(logit_bias={40: 100.0}, frequency_penalty=60.0)
    found, _ = generate(runner, [40, 40, 40], 4, sampling=penalized)
    assert found[:2] == [40, 40]
    assert 40 not in found[2:]


def test_a_watermark_is_the_configured_one(random_bloom: Path) -> None:
    """With a delta this large, greedy takes nothing but green tokens."""
    runner = make_runner(random_bloom, watermark_gamma=0.1, watermark_delta=1000.0)
    found, _ = generate(runner, PROMPT, 8, sampling=SamplingParameters(watermark=True))
    for previous, token_id in itertools.pairwise([PROMPT[-1], *found]):
        assert token_id in Watermark(0.1, 1000.0).green_list(previous, runner.model.config.vocab_size)


def test_a_step_says_what_its_parts_took(runner: Runner) -> None:
    before = runner.timings.step_micros
    result = runner.execute(make_step(add={0: PROMPT}, work=[(0, 0, 4)]))
    assert result.forward_micros > 0 and result.sample_micros > 0
    assert result.forward_micros + result.sample_micros <= runner.timings.step_micros - before


def test_times_are_summed_over_steps(random_bloom: Path) -> None:
    runner = make_runner(random_bloom)
    assert runner.timings.num_steps == 0
    generate(runner, PROMPT, 5)
    assert runner.timings.num_steps == 5
    assert runner.timings.step_micros > 0


def test_the_kv_cache_fits_its_memory(random_bloom: Path) -> None:
    runner = make_runner(random_bloom, kv_cache_gib=0.001, block_size=4)
    held = sum(tensor.nbytes for tensor in (*runner.cache.keys, *runner.cache.values))
    assert 0.9 * 0.001 * 2**30 < held <= 0.001 * 2**30
    assert runner.num_blocks == runner.cache.num_blocks


def test_no_room_for_two_blocks_is_said_in_one_line(random_bloom: Path) -> None:
    with pytest.raises(ConfigurationError, match="no room for the KV cache: 1073 bytes, one block of it takes 24576") as caught:
        make_runner(random_bloom, kv_cache_gib=1e-6)
    assert "\n" not in str(caught.value)


def test_the_smallest_budget_and_blocks_still_warm_up(random_bloom: Path) -> None:
    runner = make_runner(random_bloom, max_batch_tokens=1, block_size=1, kv_cache_gib=0.0001)
    assert generate(runner, [5], 1) == (generate(make_runner(random_bloom), [5], 1)[0], generate(runner, [5], 1)[1])


def test_on_cuda_the_cache_takes_what_a_full_step_leaves(random_bloom: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory's own numbers are made up; the step that is measured is not."""
    gib, num_blocks = 2**30, Runner._num_blocks
    told = {"mem_get_info": (8 * gib, 10 * gib), "memory_reserved": gib, "max_memory_allocated": gib}
    for name, number in (told | {"reset_peak_memory_stats": None, "empty_cache": None}).items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, number=number: number)
    free: list[int] = []

    def as_on_cuda(runner: Runner, config: ShardConfig) -> int:
        free.append(runner._free_cuda_bytes(config))
        return num_blocks(runner, config)

    monkeypatch.setattr(Runner, "_num_blocks", as_on_cuda)
    runner = make_runner(random_bloom, max_batch_tokens=64)
    assert 0.9 * 8 * gib * CUDA_MEMORY_SHARE < free[0] < 8 * gib
    assert len(generate(runner, PROMPT, 2)[0]) == 2


def test_what_is_known_is_not_sampled(runner: Runner) -> None:
    result = runner.execute(make_step(0, add={0: PROMPT}, work=[(0, 0, 2)]))
    assert result.error == "sequence 0: what follows its token 1 is known, and not to be sampled"


def test_an_error_of_the_device_that_shows_later_is_a_lost_shard(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of CUDA, which tells of it at the next question, whatever that is."""
    results: list[StepResult] = []
    runner.launch(make_step(0, add={0: PROMPT}, work=[(0, 0, 4)]), results.append)
    broken = SimpleNamespace(query=fail, synchronize=fail)
    monkeypatch.setattr(runner._launched.laps, "events", [broken])
    monkeypatch.setattr(device, "works", lambda _: False)
    assert not runner.is_computing
    with pytest.raises(ShardLost, match="illegal memory access"):
        runner.settle()
    assert results == []


def fail() -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

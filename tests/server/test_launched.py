"""Steps that are launched before the one before is done: the same results, and tokens that are waited for only where they must
be known."""

from pathlib import Path

import pytest

from triton_interpreter import DEVICE  # isort: skip  before what has kernels
from random_models import save_random_model
from recorded_steps import Again, with_graphs
from runner_steps import make_runner, make_step
from text_generation_proto.shard_pb2 import SamplingParameters, Step, StepResult
from text_generation_server.runner import Runner
from tiny_models import save_random_bloom

pytestmark = pytest.mark.skipif(DEVICE.type == "cuda", reason="the runner here is one on a CPU")

PROMPTS = {0: [5, 6, 7], 1: [40], 2: [3, 1, 4, 1, 5, 9, 2, 6], 3: [11, 12]}
PENALTY = SamplingParameters(repetition_penalty=1.5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    llama = save_random_model(tmp_path_factory.mktemp("llama"), "llama")
    return {"bloom": save_random_bloom(tmp_path_factory.mktemp("bloom"), 2, 1), "llama": llama}


def decodes(step_id: int, starts: dict[int, int], num_iterations: int = 1, drop: tuple[int, ...] = ()) -> Step:
    step = make_step(step_id, work=[(number, start, 1) for number, start in starts.items()], drop=drop)
    step.num_iterations = num_iterations
    return step


def mixed_steps() -> list[Step]:
    """Sequences come, wait a step, change places and go; prompts in parts and several iterations are among their steps."""
    steps = [
        make_step(0, add={n: PROMPTS[n] for n in (0, 1)}, work=[(0, 0, 3), (1, 0, 1)]),
        decodes(1, {1: 1, 0: 3}),
        make_step(2, add={2: PROMPTS[2]}, work=[(2, 0, 5)], sample=False),
        make_step(3, work=[(2, 5, 3), (1, 2, 1)]),
        decodes(4, {0: 4, 1: 3, 2: 8}, num_iterations=14),  # over the end of a block
        decodes(5, {0: 18, 2: 22}),
        make_step(6, add={3: PROMPTS[3]}, work=[(3, 0, 2), (0, 19, 1)], drop=[2]),
        decodes(7, {3: 2, 0: 20}, num_iterations=3),
        make_step(8, drop=[0, 1]),
        decodes(9, {3: 5}),
    ]
    return steps


def ahead(runner: Runner, steps: list[Step]) -> list[StepResult]:
    """All of them, each launched before the result of the one before is looked at."""
    results: list[StepResult] = []
    for step in steps:
        runner.launch(step, results.append)
    runner.settle()
    runner.reset()
    return results


def one_by_one(runner: Runner, steps: list[Step]) -> list[StepResult]:
    results = [runner.execute(step) for step in steps]
    runner.reset()
    return results


def check(found: list[StepResult], expected: list[StepResult]) -> None:
    assert [result.id for result in found] == [result.id for result in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.error == other.error == ""
        tokens = [[(token.sequence_id, token.token_id) for token in result.tokens] for result in (one, other)]
        assert tokens[0] == tokens[1]
        assert [token.logprob for token in one.tokens] == pytest.approx([token.logprob for token in other.tokens], abs=1e-3)


@pytest.mark.parametrize("model_type", ["bloom", "llama"])
def test_results_are_those_of_steps_that_wait_for_each_other(folders: dict[str, Path], model_type: str) -> None:
    runner = make_runner(folders[model_type])
    expected = one_by_one(runner, mixed_steps())
    assert [len(result.tokens) for result in expected] == [2, 2, 0, 2, 42, 2, 2, 6, 0, 1]
    check(ahead(runner, mixed_steps()), expected)


@pytest.mark.parametrize("model_type", ["bloom", "llama"])
def test_recorded_steps_too(folders: dict[str, Path], model_type: str) -> None:
    recorder = Again()
    runner = with_graphs(make_runner(folders[model_type]), [1, 2, 4], recorder)
    check(ahead(runner, mixed_steps()), one_by_one(make_runner(folders[model_type]), mixed_steps()))
    assert recorder.num_plays == 1 + 14 + 1 + 3 + 1


def launches_and_results(runner: Runner, steps: list[Step], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    events, forward = [], runner.model.forward

    def noted(*arguments: object) -> object:
        events.append("forward")
        return forward(*arguments)

    monkeypatch.setattr(runner.model, "forward", noted)
    for step in steps:
        runner.launch(step, lambda result: events.append(f"result {result.id}"))
    runner.settle()
    runner.reset()
    return events


def two_steps(**asked: object) -> list[Step]:
    return [make_step(0, add={0: PROMPTS[0]}, work=[(0, 0, 3)], **asked), decodes(1, {0: 3})]


def test_a_result_leaves_when_the_next_step_is_under_way(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    events = launches_and_results(make_runner(folders["bloom"]), two_steps(), monkeypatch)
    assert events == ["forward", "forward", "result 0", "result 1"]


@pytest.mark.parametrize(
    "asked",
    [{"sampling": PENALTY}, {"sampling": SamplingParameters(do_sample=True)}, {"num_top_tokens": 2}],
    ids=["penalty", "sampled", "top tokens"],
)
def test_a_step_that_must_know_its_tokens_waits_for_them(
    folders: dict[str, Path], asked: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    events = launches_and_results(make_runner(folders["bloom"]), two_steps(**asked), monkeypatch)
    assert events == ["forward", "result 0", "forward", "result 1"]


def test_guesses_wait_too(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = two_steps()
    second.num_speculative = 2
    events = launches_and_results(make_runner(folders["bloom"]), [first, second], monkeypatch)
    assert events == ["forward", "result 0", "forward", "result 1"]


def test_who_was_greedy_goes_on_right_beside_one_who_is_not(folders: dict[str, Path]) -> None:
    """The one who joins has a penalty, so that all tokens must be known."""
    steps = [
        make_step(0, add={0: PROMPTS[0], 1: PROMPTS[1]}, work=[(0, 0, 3), (1, 0, 1)]),
        decodes(1, {0: 3, 1: 1}),
        make_step(2, add={2: PROMPTS[2]}, work=[(0, 4, 1), (1, 2, 1), (2, 0, 8)], sampling=PENALTY),
        decodes(3, {0: 5, 1: 3, 2: 8}),
        decodes(4, {0: 6, 1: 4}, drop=(2,)),
        decodes(5, {0: 7, 1: 5}, num_iterations=4),
    ]
    runner = make_runner(folders["llama"])
    expected = one_by_one(runner, steps)
    check(ahead(runner, steps), expected)


def test_a_step_that_fails_takes_neither_its_neighbours_nor_their_order(folders: dict[str, Path]) -> None:
    runner = make_runner(folders["bloom"])
    steps = [*two_steps(), make_step(2, add={1: [10_000]}, work=[(1, 0, 1)]), decodes(3, {0: 4})]
    results = ahead(runner, steps)
    assert [bool(result.error) for result in results] == [False, False, True, False]
    tokens = [token.token_id for result in results for token in result.tokens]
    assert tokens == [token.token_id for result in one_by_one(runner, steps) for token in result.tokens]
    assert len(tokens) == 3

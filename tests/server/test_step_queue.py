"""The queue launches a step while the device computes the one before, and answers in order, whatever happens."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from text_generation_proto.shard_pb2 import Step, StepResult
from text_generation_server.errors import ShardLost
from text_generation_server.step_queue import StepQueue

SECONDS = 10


class FakeRunner:
    """`computes` says whether its device still works on the step that was launched last."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.computes = threading.Event()
        self.launched = threading.Semaphore(0)
        self.lost_at = -1
        self.is_gone = False
        self._pending: list[tuple[Step, Callable[[StepResult], None]]] = []

    @property
    def is_computing(self) -> bool:
        return bool(self._pending) and self.computes.is_set()

    def launch(self, step: Step, deliver: Callable[[StepResult], None]) -> None:
        self.events.append(f"launch {step.id}")
        if step.id == self.lost_at:
            raise ShardLost("the other ranks are gone")
        self.settle()
        self._pending.append((step, deliver))
        self.launched.release()

    def settle(self) -> None:
        if self.is_gone:
            raise ShardLost("the other ranks are gone")
        while self._pending:
            step, deliver = self._pending.pop()
            self.events.append(f"result {step.id}")
            deliver(StepResult(id=step.id))


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner()


@pytest.fixture
def steps(runner: FakeRunner) -> Iterator[StepQueue]:
    with ThreadPoolExecutor(1) as device_thread:
        yield StepQueue(runner, device_thread)
        runner.computes.clear()


def test_a_device_that_is_done_is_asked_for_its_result_before_anything_else(runner: FakeRunner, steps: StepQueue) -> None:
    futures = [steps.put(Step(id=number)) for number in range(3)]
    assert [future.result(SECONDS).id for future in futures] == [0, 1, 2]
    assert runner.events == ["launch 0", "result 0", "launch 1", "result 1", "launch 2", "result 2"]


def test_the_next_step_is_launched_while_the_device_computes(runner: FakeRunner, steps: StepQueue) -> None:
    runner.computes.set()
    first = steps.put(Step(id=0))
    assert runner.launched.acquire(timeout=SECONDS)
    assert not first.done()
    second = steps.put(Step(id=1))
    assert first.result(SECONDS).id == 0
    assert not second.done()
    runner.computes.clear()
    assert second.result(SECONDS).id == 1
    assert runner.events == ["launch 0", "launch 1", "result 0", "result 1"]


def test_a_lost_shard_is_told_to_all_who_wait(runner: FakeRunner, steps: StepQueue) -> None:
    runner.lost_at = 1
    runner.computes.set()
    futures = [steps.put(Step(id=0)), steps.put(Step(id=1))]
    for future in futures:
        with pytest.raises(ShardLost):
            future.result(SECONDS)


def test_a_queue_whose_device_is_gone_answers_all_the_same(runner: FakeRunner, steps: StepQueue) -> None:
    """Also those that come later, and those that were not launched."""
    runner.lost_at = 0
    for _ in range(2):
        with pytest.raises(ShardLost):
            steps.put(Step(id=0)).result(SECONDS)
    runner.is_gone = True
    with pytest.raises(ShardLost):
        steps.put(Step(id=1)).result(SECONDS)


def test_a_step_that_nobody_waits_for_any_more_is_computed_all_the_same(runner: FakeRunner, steps: StepQueue) -> None:
    runner.computes.set()
    first, second = steps.put(Step(id=0)), steps.put(Step(id=1))
    assert not first.cancel() and not second.cancel()
    runner.computes.clear()
    assert second.result(SECONDS).id == 1

"""StepQueue: steps on their way to the device thread, and their results on the way back.

In: Steps, in the order in which they are to be computed. Out: futures of their results. While the device computes a step, the
next one is launched as soon as it is here, so that the device finds it when it comes to the end.
"""

import queue
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from text_generation_proto.shard_pb2 import Step, StepResult
from text_generation_server.runner import Runner

POLL_SECONDS = 1e-4  # a device tells of its end only who asks


class StepQueue:
    def __init__(self, runner: Runner, device_thread: ThreadPoolExecutor) -> None:
        self.runner = runner
        self._device_thread = device_thread
        self._steps: queue.SimpleQueue[tuple[Step, Future[StepResult]]] = queue.SimpleQueue()
        self._awaited: deque[Future[StepResult]] = deque()  # of steps that were launched

    def put(self, step: Step) -> "Future[StepResult]":
        """The future fails with ShardLost where the shard can go on no more. A step is computed even if nobody waits for it:
        the other ranks compute it too."""
        future: Future[StepResult] = Future()
        future.set_running_or_notify_cancel()
        self._steps.put((step, future))
        self._device_thread.submit(self._work)
        return future

    def _work(self) -> None:
        """Until no step is left, and all that were launched are done."""
        try:
            while found := self._next():
                step, future = found
                self._awaited.append(future)
                self.runner.launch(step, self._deliver)
        except Exception as error:  # whoever waits is told, or would wait for ever
            while not self._steps.empty():
                self._awaited.append(self._steps.get_nowait()[1])
            while self._awaited:
                self._awaited.popleft().set_exception(error)

    def _next(self) -> tuple[Step, "Future[StepResult]"] | None:
        while self.runner.is_computing:
            try:
                return self._steps.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
        self.runner.settle()
        try:
            return self._steps.get_nowait()
        except queue.Empty:
            return None

    def _deliver(self, result: StepResult) -> None:
        self._awaited.popleft().set_result(result)

"""Launched: a step whose work has been handed to the device.

In: the chunks it computes, and what the device chooses for them. Out: its result, once the device has come to its end. On CUDA
that is after the next step has been launched: nothing here waits before `finish`.
"""

import time
from collections.abc import Callable

import torch

from text_generation_proto.shard_pb2 import Step, StepResult
from text_generation_server.device import Laps, idle_micros
from text_generation_server.sampler import Greedy, Sampled
from text_generation_server.sequences import Chunk
from text_generation_server.step_result import add_tokens


class Launched:
    """`laps` are marked by whoever computes the step: before and after each forward, and when the last token is chosen."""

    def __init__(self, step: Step, device: torch.device, deliver: Callable[[StepResult], None]) -> None:
        self.step = step
        self.result = StepResult(id=step.id)
        self.deliver = deliver
        self.laps = Laps(device)
        self.start_seconds = self.end_seconds = time.perf_counter()
        self.sequence_ids = {work.sequence_id for work in step.work}
        self._promised: list[list[Chunk]] = []  # for each iteration those that get a token
        self._found: list[Greedy] = []
        self._token_ids = self._logprobs = torch.empty(0)

    def promise(self, chunks: list[Chunk], found: list[Greedy]) -> None:
        """The chunks' sequences get what was found, in each of so many iterations; the first of them is that of the chunks."""
        sampled = [chunk for chunk in chunks if chunk.sample]
        for greedy in found:
            if self._found:
                sampled = [chunk.sequence.decode() for chunk in sampled]
            for row, chunk in enumerate(sampled):
                chunk.promise(row)
            self._promised.append(sampled)
            self._found.append(greedy)

    def end(self) -> None:
        """All that is to be computed is under way: what was found leaves the device as soon as it is there."""
        if self._found:
            self._token_ids, self._logprobs = (
                torch.stack(numbers).to("cpu", non_blocking=True)
                for numbers in zip(*((greedy.token_ids, greedy.logprobs) for greedy in self._found), strict=True)
            )
        self.laps.mark()

    def fail(self, reason: str) -> None:
        self.result = StepResult(id=self.step.id, error=reason)
        self._promised.clear()

    def finish(self) -> None:
        """Waits for the device, and completes the result."""
        try:
            micros = self.laps.micros()
            self.result.forward_micros, self.result.sample_micros = sum(micros[::2]), sum(micros[1::2])
            found = zip(self._promised, self._token_ids.tolist(), self._logprobs.tolist(), strict=True)
            for chunks, token_ids, logprobs in found:
                add_tokens(self.result, chunks, Sampled.of_greedy(token_ids, logprobs))
        finally:
            self.end_seconds = time.perf_counter()

    def step_micros(self, last: "Launched | None") -> int:
        """What this step took, after `last` was done."""
        begin = max(self.start_seconds, last.end_seconds) if last else self.start_seconds
        return int((self.end_seconds - begin) * 1e6)

    def wait_micros(self, last: "Launched | None") -> int:
        """How long the device had nothing to do before this step, although sequences of the last one go on in it. A CPU is at
        work when it lays out a step."""
        if last is None or not self.sequence_ids & last.sequence_ids:
            return 0
        if self.laps.on_cuda:
            return idle_micros(last.laps, self.laps)
        return int(max(0.0, self.start_seconds - last.end_seconds) * 1e6)

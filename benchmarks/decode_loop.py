"""DecodeLoop: a batch of equally long sequences, decoded step by step through a shard's Runner, in this process.

In: a Runner and prompts. Out: the seconds of each decode step: the message taken, the forward, the sampling, the answer.
It writes the Steps that a router would, and when it would; no router, no gRPC and no HTTP take part.
"""

import itertools
import time
from collections.abc import Sequence

from text_generation_proto.shard_pb2 import SamplingParameters, Step, StepResult
from text_generation_server.runner import Runner

WARM_UP_STEPS = 3


class DecodeLoop:
    def __init__(
        self, runner: Runner, prompts: Sequence[Sequence[int]], max_new_tokens: int, sampling: SamplingParameters | None = None
    ) -> None:
        """Computes the prompts. `sampling` None: greedy; sequence i draws with the seed `sampling.seed` + i."""
        self.runner = runner
        self.token_ids = [list(prompt) for prompt in prompts]
        self._num_tokens = [len(prompt) for prompt in prompts]  # with those that are still computed
        self._max_new_tokens = max_new_tokens
        self.result = StepResult()  # of the latest step
        self._step_id = 0
        self._num_blocks = 0
        runner.reset()
        for index in range(len(prompts)):
            self._start(index, sampling or SamplingParameters())

    def time_steps(self, num_steps: int) -> list[float]:
        """Seconds from one result to the next, of `num_steps` steps after a few that do not count. As from a router, the next
        step is there while one is computed; a CPU takes it up afterwards."""
        readings = [time.perf_counter()]
        for _ in range(WARM_UP_STEPS + num_steps):
            self._launch(self._next_step())
            readings.append(time.perf_counter())
        self.runner.settle()
        return [later - earlier for earlier, later in itertools.pairwise(readings[WARM_UP_STEPS:])]

    def step(self) -> None:
        """One more token for each sequence, there when this returns."""
        self._launch(self._next_step())
        self.runner.settle()

    def _next_step(self) -> Step:
        step = Step()
        for index, num_tokens in enumerate(self._num_tokens):
            step.work.add(sequence_id=index, start=num_tokens - 1, length=1, sample=True)
            self._num_tokens[index] += 1
        return step

    def _start(self, index: int, sampling: SamplingParameters) -> None:
        """The prompt of one sequence, in chunks within the budget. It gets all the blocks it will ever need."""
        prompt = list(self.token_ids[index])
        step = Step()
        seeded = SamplingParameters()
        seeded.CopyFrom(sampling)
        seeded.seed += index
        step.add.add(id=index, token_ids=prompt, sampling=seeded)
        blocks = self._take_blocks(len(prompt) + self._max_new_tokens)
        for start in range(0, len(prompt), self.runner.max_batch_tokens):
            length = min(self.runner.max_batch_tokens, len(prompt) - start)
            sample = start + length == len(prompt)
            step.work.add(sequence_id=index, start=start, length=length, block_ids=blocks, sample=sample)
            self._launch(step)
            step, blocks = Step(), range(0)
        self.runner.settle()
        self._num_tokens[index] += 1

    def _take_blocks(self, num_tokens: int) -> range:
        first = self._num_blocks
        self._num_blocks += -(-num_tokens // self.runner.block_size)
        return range(first, self._num_blocks)

    def _launch(self, step: Step) -> None:
        step.id = self._step_id
        self._step_id += 1
        self.runner.launch(step, self._take)

    def _take(self, result: StepResult) -> None:
        self.result = result
        if result.error:
            raise RuntimeError(f"a step failed: {result.error}")
        for token in result.tokens:
            self.token_ids[token.sequence_id].append(token.token_id)

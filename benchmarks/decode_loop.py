"""DecodeLoop: a batch of equally long sequences, decoded step by step through a shard's Runner, in this process.

In: a Runner and prompts. Out: the seconds of each decode step: the message taken, the forward, the sampling, the answer.
It writes the Steps that a router would; no router, no gRPC and no HTTP take part.
"""

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
        self._max_new_tokens = max_new_tokens
        self.result = StepResult()  # of the latest step
        self._step_id = 0
        self._num_blocks = 0
        runner.reset()
        for index in range(len(prompts)):
            self._start(index, sampling or SamplingParameters())

    def time_steps(self, num_steps: int) -> list[float]:
        """Seconds of each of `num_steps` steps, after a few that do not count."""
        for _ in range(WARM_UP_STEPS):
            self.step()
        seconds = []
        for _ in range(num_steps):
            start_seconds = time.perf_counter()
            self.step()
            seconds.append(time.perf_counter() - start_seconds)
        return seconds

    def step(self) -> None:
        step = Step()
        for index, token_ids in enumerate(self.token_ids):
            step.work.add(sequence_id=index, start=len(token_ids) - 1, length=1, sample=True)
        self._execute(step)

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
            self._execute(step)
            step, blocks = Step(), range(0)

    def _take_blocks(self, num_tokens: int) -> range:
        first = self._num_blocks
        self._num_blocks += -(-num_tokens // self.runner.block_size)
        return range(first, self._num_blocks)

    def _execute(self, step: Step) -> None:
        step.id = self._step_id
        self._step_id += 1
        self.result = self.runner.execute(step)
        if self.result.error:
            raise RuntimeError(f"a step failed: {self.result.error}")
        for token in self.result.tokens:
            self.token_ids[token.sequence_id].append(token.token_id)

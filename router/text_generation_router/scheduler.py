"""Scheduler: which sequences run in the next step, and what a step's result changes.

In: sequences that wait, and results. Out: steps under a token budget. Steps are made ahead of their results: a decoding
sequence goes on before its last token is known here, because the shards know it. Synchronous, no tensors, no I/O.
"""

import bisect
import collections
import dataclasses
import itertools
import time
from collections.abc import Mapping
from typing import Literal

from text_generation_router.block_manager import BlockManager
from text_generation_router.pace import Pace
from text_generation_router.sequence import Sequence, Status

MIN_BURST = 4  # prompts that wait at once, and as many as this
BURST_SHARE = 0.25  # of the streams that run: then they wait,
MAX_HELD = 2  # steps of prompts alone for each one of theirs
NUM_YOUNG = 8  # tokens, with which a stream is still one of a burst itself
MAX_WAITED = 16  # steps that streams wait in one burst


@dataclasses.dataclass(slots=True)  # not frozen: there is one for every token, and that takes three times as long
class Work:
    """Positions [start, start + length) of one sequence, the blocks newly given to it, and how many tokens are sampled.

    Where shards may guess, `num_tokens` is what comes if all guesses are right, and `start` is where the sequence is then."""

    sequence: Sequence
    start: int
    length: int
    block_ids: list[int]
    num_tokens: int
    num_preemptions: int  # the sequence's, when this was scheduled

    @property
    def is_prefill(self) -> bool:
        return self.length > 1 or self.start < self.sequence.num_prompt_tokens


@dataclasses.dataclass(slots=True)
class Step:
    id: int
    drop: list[int] = dataclasses.field(default_factory=list)
    add: list[Sequence] = dataclasses.field(default_factory=list)
    work: list[Work] = dataclasses.field(default_factory=list)
    num_iterations: int = 1  # how often the shards decode before they answer
    num_speculative: int = 0  # tokens that they may guess for a sequence each time
    made_seconds: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def method(self) -> Literal["prefill", "decode"]:
        """What the metrics call it: a step with any part of a prompt in it is a prefill."""
        return "prefill" if self.num_prefill_tokens else "decode"

    @property
    def num_prefill_tokens(self) -> int:
        return sum(work.length for work in self.work if work.is_prefill)

    @property
    def decodes(self) -> bool:
        """Whether any sequence goes on with a token in it."""
        return not all(work.is_prefill for work in self.work)


class Scheduler:
    """First come, first served, by `Sequence.id`. The newest sequence gives way when blocks run out."""

    def __init__(
        self,
        block_manager: BlockManager,
        max_batch_tokens: int,
        max_batch_size: int | None = None,
        chunked_prefill: bool = True,
        num_speculative: int = 0,
    ) -> None:
        """A step computes at most `max_batch_tokens`, of at most `max_batch_size` sequences. Without `chunked_prefill` a
        prompt is computed in one step, or not yet: one step must hold the longest. Shards may guess `num_speculative` tokens of
        a decoding sequence at a time."""
        self.block_manager = block_manager
        self.max_batch_tokens = max_batch_tokens
        self.max_batch_size = max_batch_size
        self.chunked_prefill = chunked_prefill
        self.num_speculative = num_speculative
        self.pace = Pace()
        self.waiting: collections.deque[Sequence] = collections.deque()
        self.running: list[Sequence] = []  # in order of id
        self.in_flight: collections.deque[Step] = collections.deque()
        self._dropped: list[int] = []
        self._next_step_id = 0
        self._is_burst = False
        self._num_held = 0  # steps of prompts alone since the streams' last one
        self._num_waited = 0  # steps that streams have waited for bursts, less those that they had since

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def schedule(self) -> Step | None:
        """The next step, now in flight; None when there is nothing to compute or to drop."""
        step = Step(self._next_step_id, num_speculative=self.num_speculative)
        step.num_iterations = self._num_iterations()
        self._is_burst = self._sees_burst()
        if self._is_burst and self._num_held < MAX_HELD:
            self._schedule_prompts(step, self.max_batch_tokens)
        self._count_held(step)
        if not step.work:
            budget = self._schedule_decodes(step, self.max_batch_tokens)
            self._schedule_prompts(step, min(budget, self._max_prompt_tokens(step)))
        step.drop.extend(self._dropped)
        if not step.work and not step.drop:
            return None
        self._dropped.clear()
        self._next_step_id += 1
        self.in_flight.append(step)
        return step

    def apply(self, tokens: Mapping[int, list[int]]) -> list[Sequence]:
        """The oldest step in flight is done and sampled `tokens`, by sequence id. Returns the sequences that got new last
        tokens; those that ended in the meantime do not want theirs."""
        extended = []
        for work in self.in_flight.popleft().work:
            sequence = work.sequence
            sequence.num_pending -= work.num_tokens
            if sequence.finished:
                continue
            if work.num_tokens:
                sequence.token_ids += tokens[sequence.id]
                extended.append(sequence)
            if sequence.num_preemptions == work.num_preemptions:
                num_missed = work.num_tokens - len(tokens[sequence.id]) if work.num_tokens else 0
                sequence.num_scheduled -= num_missed
                num_computed = len(sequence.token_ids) - 1 if work.num_tokens else work.start + work.length
                self.block_manager.register(sequence, num_computed)
        return extended

    def fail(self) -> list[Sequence]:
        """The oldest step in flight failed on the shards. Ends its sequences and returns them."""
        failed = [work.sequence for work in self.in_flight.popleft().work if not work.sequence.finished]
        for sequence in failed:
            self.finish(sequence)
        return failed

    def finish(self, sequence: Sequence) -> None:
        """Ends a sequence, for whatever reason. Its blocks are free at once: steps in flight run before any that reuses
        them. Does nothing the second time."""
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
            self._take_back(sequence)
        elif sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        sequence.status = Status.FINISHED

    def interrupt(self, block_manager: BlockManager) -> list[Sequence]:
        """The shards are gone, and with them all keys, values and results in flight. Everything that ran waits again, with
        the tokens it has, for shards with an empty cache. Returns what was being computed."""
        in_work = {work.sequence.id: work.sequence for step in self.in_flight for work in step.work}
        for sequence in reversed(self.running):
            self._preempt(sequence)
        for sequence in self.waiting:
            sequence.num_pending = 0
            sequence.block_hashes.clear()  # of blocks that may have had another size
        self.running.clear()
        self.in_flight.clear()
        self._dropped.clear()
        self._next_step_id = 0
        self.block_manager = block_manager
        return [sequence for sequence in in_work.values() if not sequence.finished]

    def _num_iterations(self) -> int:
        """More than one only where all that could be done is to decode, and no sequence ends or lacks blocks before. Guesses
        make several tokens of a step already."""
        if self.pace.num_iterations == 1 or self.num_speculative or self.waiting:
            return 1
        if any(sequence.num_unscheduled > 1 for sequence in self.running):
            return 1
        decoding = [sequence for sequence in self.running if sequence.wants_token]
        num_tokens = min((sequence.num_wanted - sequence.num_tokens for sequence in decoding), default=1)
        num_iterations = min(self.pace.num_iterations, num_tokens)
        missing = (self.block_manager.num_missing(sequence, sequence.num_tokens + num_iterations) for sequence in decoding)
        return num_iterations if sum(missing) <= self.block_manager.num_free else 1

    def _sees_burst(self) -> bool:
        """Whether prompts come first, because many wait at once, or because all streams have only just begun: side by side with
        so many prompts, streams would stutter for long. It lasts until none is left that has room, or the streams have waited
        long enough; before the next one they have as many steps as they waited."""
        prompts = [sequence for sequence in self.running if sequence.num_unscheduled > 1]
        if (not prompts and not self.waiting) or self._num_waited >= (MAX_WAITED if self._is_burst else 1):
            return False
        streams = [sequence for sequence in self.running if sequence.num_unscheduled <= 1]
        least = min(len(streams) + 1, max(MIN_BURST, int(BURST_SHARE * len(streams))))
        if self._is_burst or all(len(stream.token_ids) <= stream.num_prompt_tokens + NUM_YOUNG for stream in streams):
            least = 1
        return bool(streams) and len(prompts) + self._num_admissible(least - len(prompts)) >= least

    def _count_held(self, step: Step) -> None:
        """With work in it by now, `step` is one that streams wait for."""
        self._num_held = self._num_held + 1 if step.work else 0
        if step.work:
            self._num_waited += 1
        elif not self.running:
            self._num_waited = 0
        elif not self._is_burst:
            self._num_waited = max(0, self._num_waited - 1)

    def _max_prompt_tokens(self, step: Step) -> int:
        """What prompts may add to the streams in `step`, which are not to wait long for them."""
        if not step.work or not (self._is_burst or self.chunked_prefill):
            return self.max_batch_tokens
        return 0 if self._is_burst else self.pace.max_prefill_tokens

    def _num_admissible(self, most: int) -> int:
        """For how many of the first sequences that wait there is room now, if they find nothing in the prefix cache. Counts no
        further than to `most`."""
        num_free = self.block_manager.num_free
        for count, sequence in enumerate(itertools.islice(self.waiting, max(0, most))):
            num_free -= self.block_manager.num_missing(sequence, len(sequence.token_ids))
            num_running = len(self.running) + count
            if num_free < num_running or not self._has_place(num_running):
                return count
        return min(len(self.waiting), max(0, most))

    def _has_place(self, num_running: int) -> bool:
        """Whether one more may run beside so many: within the batch size, and so that a step holds all of their tokens."""
        return num_running != self.max_batch_size and num_running * (1 + self.num_speculative) < self.max_batch_tokens

    def _schedule_decodes(self, step: Step, budget: int) -> int:
        """The next token of each running sequence that has its prompt behind it. Returns the budget that is left."""
        for sequence in list(self.running):  # those that give way are no longer in it
            if budget == 0:
                break
            if sequence.wants_token and sequence.status is Status.RUNNING and self._make_room(sequence):
                self._add_decode(step, sequence)
                budget -= min(budget, 1 + step.num_speculative)
        return budget

    def _schedule_prompts(self, step: Step, budget: int) -> None:
        """The next chunks of prompts that were begun, which have their blocks since then, and after them those that wait."""
        for sequence in self.running:
            if budget and sequence.num_unscheduled > 1:
                budget -= self._add_work(step, sequence, budget)
        while budget and self.waiting and self._has_place(len(self.running)):
            sequence = self.waiting[0]
            if not self.chunked_prefill and len(sequence.token_ids) > budget:
                return
            if sequence.num_pending or not self._start(sequence):
                return
            self.waiting.popleft()
            step.add.append(sequence)
            budget -= self._add_work(step, sequence, budget, sequence.block_ids)

    def _start(self, sequence: Sequence) -> bool:
        """Takes blocks for all of a waiting sequence's tokens, if that leaves each running one a block to grow into."""
        if not sequence.request.prompt_logprobs:  # whose every position must be computed to be rated
            self.block_manager.take_prefix(sequence)
        missing = self.block_manager.num_missing(sequence, len(sequence.token_ids))
        if missing + len(self.running) > self.block_manager.num_free:
            self.block_manager.release(sequence)
            sequence.num_scheduled = 0
            return False
        self.block_manager.grow(sequence, len(sequence.token_ids))
        if sequence.first_scheduled_seconds is None:
            sequence.first_scheduled_seconds = time.monotonic()
            sequence.num_cached_tokens = sequence.num_scheduled
        sequence.status = Status.RUNNING
        bisect.insort(self.running, sequence, key=lambda running: running.id)
        return True

    def _make_room(self, sequence: Sequence) -> bool:
        """Preempts the newest sequences until `sequence` can grow by a token; False if it had to give way itself."""
        while self.block_manager.num_missing(sequence, sequence.num_tokens) > self.block_manager.num_free:
            newest = self.running.pop()
            self._preempt(newest)
            if newest is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the head of the queue, without blocks. It will compute its tokens again, or find them cached."""
        self._take_back(sequence)
        sequence.status = Status.WAITING
        sequence.num_scheduled = 0
        sequence.num_preemptions += 1
        self.waiting.appendleft(sequence)

    def _take_back(self, sequence: Sequence) -> None:
        self.block_manager.release(sequence)
        self._dropped.append(sequence.id)

    def _add_decode(self, step: Step, sequence: Sequence) -> None:
        """One position, and what the shards go on to on their own: blocks for it, if there are."""
        start = sequence.num_scheduled
        num_tokens = step.num_iterations * (1 + step.num_speculative)
        num_positions = min(start + num_tokens, sequence.num_wanted)
        if self.block_manager.num_missing(sequence, num_positions) > self.block_manager.num_free:
            num_positions = start + 1
        new_blocks = self.block_manager.grow(sequence, num_positions)
        step.work.append(Work(sequence, start, 1, new_blocks, num_tokens, sequence.num_preemptions))
        sequence.num_scheduled += num_tokens
        sequence.num_pending += num_tokens

    def _add_work(self, step: Step, sequence: Sequence, budget: int, block_ids: list[int] | None = None) -> int:
        """Up to `budget` of the sequence's next positions. Returns how many."""
        start, length = sequence.num_scheduled, min(sequence.num_unscheduled, budget)
        new_blocks = self.block_manager.grow(sequence, start + length) if block_ids is None else list(block_ids)
        num_tokens = int(start + length == sequence.num_tokens)
        step.work.append(Work(sequence, start, length, new_blocks, num_tokens, sequence.num_preemptions))
        sequence.num_scheduled += length
        sequence.num_pending += num_tokens
        return length

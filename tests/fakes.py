"""FakeShards: the real step protocol over Unix sockets with scripted tokens, strict about every word of it, without torch.

In: a script (sizes, failures, delays). Out: what arrived, what was answered, and the violations: leaving the `async with`
raises the first one. `FakeDevice` is the same without gRPC, for tests of the scheduler alone. It models the KV cache: each
slot holds a number that stands for all tokens up to its position, so that a step that would attend to anything but its
own prefix is found out; and the next token is a function of all tokens so far, so that any mistake changes the text.
"""

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable

import grpc

from text_generation_proto import shard_pb2, shard_pb2_grpc
from text_generation_proto.shard_pb2 import Step, StepResult

EOS = 2
FIRST_TOKEN, NUM_TOKENS = 4, 94  # the printable characters of tiny_tokenizers.byte_level()
LOGPROB = -0.25
FORWARD_MICROS, SAMPLE_MICROS = 2_000_000, 500_000  # slow shards: the router keeps up with every single token
_GARBAGE = -1


def answer(prompt: list[int], max_new_tokens: int, eos_length: int | None = None) -> list[int]:
    """The tokens that the fakes generate after `prompt`, whatever else they were doing."""
    token_ids = list(prompt)
    while len(token_ids) < len(prompt) + max_new_tokens and token_ids[-1] != EOS:
        token_ids.append(next_token(token_ids, eos_length))
    return token_ids[len(prompt) :]


def next_token(token_ids: list[int], eos_length: int | None = None) -> int:
    if eos_length is not None and len(token_ids) == eos_length:
        return EOS
    return FIRST_TOKEN + prefix_hashes(token_ids)[-1] % NUM_TOKENS


def top_tokens(token_id: int, count: int, logprob: float = LOGPROB) -> list[tuple[int, float]]:
    """What the fakes say beside a token: itself and those that follow it in the vocabulary."""
    return [(token_id + rank, logprob - rank) for rank in range(count)]


def prompt_logprob(position: int) -> float:
    """How the fakes rate the token of a prompt at a position: no two alike."""
    return -position / 8


def prefix_hashes(token_ids: Iterable[int]) -> list[int]:
    """For each position a number that stands for all tokens up to it: all that its keys and values depend on."""
    return list(itertools.accumulate(token_ids, lambda parent, token_id: hash((parent, token_id)), initial=0))[1:]


async def until(condition: Callable[[], object], timeout_seconds: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for did not come"
        await asyncio.sleep(0.001)


class ProtocolViolation(AssertionError):
    """The driver broke the protocol, or would have computed with wrong keys and values."""


@dataclasses.dataclass(slots=True)
class _SequenceState:
    message: shard_pb2.NewSequence
    token_ids: list[int]
    hashes: list[int]
    block_table: list[int] = dataclasses.field(default_factory=list)
    num_computed: int | None = None  # None until its first work


class FakeDevice:
    """One rank's sequences and KV cache from the first step of a stream on."""

    def __init__(
        self,
        block_size: int,
        num_blocks: int,
        max_batch_tokens: int,
        eos_length: int | None = None,
        chunked_prefill: bool = True,
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.max_batch_tokens = max_batch_tokens
        self.eos_length = eos_length
        self.chunked_prefill = chunked_prefill
        self.num_sampled: collections.Counter[int] = collections.Counter()  # by sequence id
        self.num_computed: collections.Counter[int] = collections.Counter()
        self._next_step_id = 0
        self._states: dict[int, _SequenceState] = {}
        self._failed: set[int] = set()
        self._owners: dict[int, set[int]] = collections.defaultdict(set)
        self._slots: dict[int, int] = {}

    @property
    def live(self) -> set[int]:
        return set(self._states)

    def execute(self, step: Step, failing: bool = False) -> StepResult:
        """
        Raises:
            ProtocolViolation: see there.
        """
        made, step = step, Step()
        step.CopyFrom(made)  # what was sent stays as it was
        _check(step.id == self._next_step_id, f"step {step.id} came where {self._next_step_id} was due")
        self._next_step_id += 1
        for sequence_id in step.drop:
            self._drop(sequence_id)
        for message in step.add:
            _check(message.id not in self._states, f"sequence {message.id} is added twice")
            _check(len(message.token_ids) > 0, f"sequence {message.id} has no tokens")
            self._states[message.id] = _SequenceState(message, list(message.token_ids), prefix_hashes(message.token_ids))
        _check(step.add or step.work or step.drop, f"step {step.id} is empty")
        _check({message.id for message in step.add} <= {work.sequence_id for work in step.work}, "an addition without work")
        _check(sum(work.length for work in step.work) <= self.max_batch_tokens, f"step {step.id} is over the budget")
        _check(len({work.sequence_id for work in step.work}) == len(step.work), f"a sequence is twice in step {step.id}")
        works = [work for work in step.work if work.sequence_id not in self._failed]
        _check(step.num_iterations <= 1 or all(work.sample and work.length == 1 for work in works), "iterations of prompts")
        for work in works:
            self._start_from(work, step.num_speculative)
            self._compute(work)
        if failing:
            self._fail(works)
            return StepResult(id=step.id, error="RuntimeError: scripted failure")
        result = StepResult(id=step.id)
        for work in works:
            self._rate_prompt(work, result)
            for iteration in range(max(1, step.num_iterations)) if work.sample else ():
                if iteration:
                    self._compute(work)
                self._decode(work, step.num_speculative, result)
        return result

    def _start_from(self, work: shard_pb2.Work, num_speculative: int) -> None:
        """Where guesses were allowed, a driver that is ahead cannot know where the sequence is: it may only be too high."""
        _check(work.sequence_id in self._states, f"sequence {work.sequence_id} was never added")
        num_computed = self._states[work.sequence_id].num_computed
        if num_computed is not None and num_speculative and work.length == 1:
            _check(work.start >= num_computed, f"sequence {work.sequence_id}: starts at {work.start} of {num_computed}")
            work.start = num_computed

    def _decode(self, work: shard_pb2.Work, num_speculative: int, result: StepResult) -> None:
        """One token, and as many right guesses as chance has it, if there is room and wish for them. What was guessed wrong has
        left its keys and values behind."""
        state = self._states[work.sequence_id]
        num_generated = len(state.token_ids) - (state.message.num_prompt_tokens or len(state.message.token_ids))
        room = len(state.block_table) * self.block_size - len(state.token_ids)
        wish = state.message.max_new_tokens - num_generated - 1
        decodes = len(state.token_ids) > len(state.message.token_ids)
        num_guesses = max(0, min(num_speculative, room, wish)) if decodes else 0
        num_right = state.hashes[-1] % (num_guesses + 1)
        for index in range(num_guesses):
            self._slots[self._slot(state, len(state.token_ids) + index)] = _GARBAGE
        self._add_token(work.sequence_id, result)
        for _ in range(num_right):
            work.start, work.length = len(state.token_ids) - 1, 1
            self._compute(work)
            self._add_token(work.sequence_id, result)
        work.start, work.length = len(state.token_ids) - 1, 1

    def _drop(self, sequence_id: int) -> None:
        _check(sequence_id in self._states, f"sequence {sequence_id} is dropped and not there")
        for block in self._states.pop(sequence_id).block_table:
            self._owners[block].discard(sequence_id)
        self._failed.discard(sequence_id)

    def _compute(self, work: shard_pb2.Work) -> None:
        name, start, end = f"sequence {work.sequence_id}", work.start, work.start + work.length
        state = self._states[work.sequence_id]
        _check(start < end <= len(state.token_ids), f"{name}: cannot compute [{start}, {end}) of {len(state.token_ids)} tokens")
        is_whole = start == 0 and end == len(state.token_ids)
        is_decode = state.num_computed is not None and work.length == 1
        _check(self.chunked_prefill or is_whole or is_decode, f"{name}: a part of a prompt, [{start}, {end})")
        _check(work.sample == (end == len(state.token_ids)), f"{name}: samples {work.sample} after {end} positions")
        self._give_blocks(work, state)
        del work.block_ids[:]
        _check(end <= len(state.block_table) * self.block_size, f"{name}: position {end - 1} has no block")
        _check(start == 0 or state.num_computed is not None or not state.message.prompt_logprobs, f"{name}: is not rated whole")
        _check(state.num_computed in (None, start), f"{name}: starts at {start}, computed are {state.num_computed}")
        for position in range(start, end):
            _check(self._owners[state.block_table[position // self.block_size]] == {work.sequence_id}, f"{name} writes to all")
            self._slots[self._slot(state, position)] = state.hashes[position]
        for position in range(end):
            found = self._slots.get(self._slot(state, position))
            _check(found == state.hashes[position], f"{name}: position {position} of {end} attends to others' keys and values")
        state.num_computed = end
        self.num_computed[work.sequence_id] += work.length

    def _give_blocks(self, work: shard_pb2.Work, state: _SequenceState) -> None:
        for block in work.block_ids:
            _check(block < self.num_blocks, f"block {block} of {self.num_blocks}")
            end = (len(state.block_table) + 1) * self.block_size
            is_prefix = state.num_computed is None and end <= work.start
            _check(is_prefix or not self._owners[block], f"block {block} has another owner: {self._owners[block]}")
            _check(block not in state.block_table, f"block {block} is given twice to sequence {work.sequence_id}")
            state.block_table.append(block)
            self._owners[block].add(work.sequence_id)

    def _fail(self, works: list[shard_pb2.Work]) -> None:
        for work in works:
            self._failed.add(work.sequence_id)
            for position in range(work.start, work.start + work.length):
                self._slots[self._slot(self._states[work.sequence_id], position)] = _GARBAGE

    def _rate_prompt(self, work: shard_pb2.Work, result: StepResult) -> None:
        """Position p rates the token at p + 1."""
        message = self._states[work.sequence_id].message
        end = min(work.start + work.length + 1, message.num_prompt_tokens or len(message.token_ids))
        if not message.prompt_logprobs or end <= work.start + 1:
            return
        prompt = result.prompts.add(sequence_id=message.id, start=work.start + 1)
        for position in range(work.start + 1, end):
            prompt.logprobs.append(prompt_logprob(position))
            for top_id, logprob in top_tokens(message.token_ids[position], message.num_top_tokens, prompt_logprob(position)):
                prompt.top_token_ids.append(top_id)
                prompt.top_logprobs.append(logprob)

    def _add_token(self, sequence_id: int, result: StepResult) -> None:
        token = result.tokens.add(sequence_id=sequence_id, token_id=self._sample(sequence_id), logprob=LOGPROB)
        for top_id, logprob in top_tokens(token.token_id, self._states[sequence_id].message.num_top_tokens):
            token.top_token_ids.append(top_id)
            token.top_logprobs.append(logprob)

    def _sample(self, sequence_id: int) -> int:
        state = self._states[sequence_id]
        state.token_ids.append(next_token(state.token_ids, self.eos_length))
        state.hashes.append(hash((state.hashes[-1], state.token_ids[-1])))
        self.num_sampled[sequence_id] += 1
        return state.token_ids[-1]

    def _slot(self, state: _SequenceState, position: int) -> int:
        return state.block_table[position // self.block_size] * self.block_size + position % self.block_size


def _check(condition: object, message: str) -> None:
    if not condition:
        raise ProtocolViolation(message)


@dataclasses.dataclass(slots=True)
class Script:
    """How the shards behave. With `permits`, rank 0 answers a step for each one released."""

    block_size: int = 4
    num_blocks: int = 64
    max_positions: int = 128
    max_batch_tokens: int = 64
    chunked_prefill: bool = True
    prefix_cache: bool = True
    device: str = "cpu"
    eos_length: int | None = None
    step_seconds: float = 0.0
    says_it_took: tuple[int, int] = (FORWARD_MICROS, SAMPLE_MICROS)
    permits: asyncio.Semaphore | None = None
    fails_on: Callable[[Step], bool] = lambda step: False
    breaks_on: Callable[[Step], bool] = lambda step: False


@dataclasses.dataclass(slots=True)
class FakeStream:
    """One Execute call: the steps as they arrived, and the ids of those that were computed."""

    device: FakeDevice
    steps: list[Step] = dataclasses.field(default_factory=list)
    computed: list[int] = dataclasses.field(default_factory=list)
    is_open: bool = True


class FakeShard(shard_pb2_grpc.ShardServicer):
    """One rank. As the real one, every rank reports a failed step, and rank 0 alone its tokens."""

    def __init__(self, uds_path: str, rank: int, world_size: int, script: Script) -> None:
        self.uds_path = uds_path
        self.rank = rank
        self.world_size = world_size
        self.script = script
        self.streams: list[FakeStream] = []
        self.violations: list[ProtocolViolation] = []
        self.generate_requests: list[shard_pb2.GenerateRequest] = []
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self._server = grpc.aio.server()
        shard_pb2_grpc.add_ShardServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{self.uds_path}-{self.rank}")
        await self._server.start()

    async def stop(self) -> None:
        if self._server:
            await self._server.stop(None)
            self._server = None

    async def Describe(
        self, request: shard_pb2.DescribeRequest, context: grpc.aio.ServicerContext
    ) -> shard_pb2.DescribeResponse:
        return shard_pb2.DescribeResponse(
            model_id="fake",
            model_type="bloom",
            dtype="float32",
            device=self.script.device,
            rank=self.rank,
            world_size=self.world_size,
            shard_urls=[f"unix:{self.uds_path}-{rank}" for rank in range(self.world_size)],
            block_size=self.script.block_size,
            num_blocks=self.script.num_blocks,
            max_positions=self.script.max_positions,
            vocab_size=340,
            eos_token_ids=[EOS],
            max_batch_tokens=self.script.max_batch_tokens,
            chunked_prefill=self.script.chunked_prefill,
            prefix_cache=self.script.prefix_cache,
        )

    async def Execute(
        self, request_iterator: AsyncIterator[Step], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[StepResult]:
        await context.send_initial_metadata(())
        script = self.script
        stream = FakeStream(
            FakeDevice(
                script.block_size, script.num_blocks, script.max_batch_tokens, script.eos_length, script.chunked_prefill
            )
        )
        self.streams.append(stream)
        arrived: asyncio.Queue[Step | None] = asyncio.Queue()
        reader = asyncio.create_task(self._read(request_iterator, stream, arrived))
        try:
            while (step := await arrived.get()) is not None:
                if script.permits and self.rank == 0:
                    await script.permits.acquire()
                await asyncio.sleep(script.step_seconds)
                if script.breaks_on(step):
                    await context.abort(grpc.StatusCode.UNAVAILABLE, f"scripted end in step {step.id}")
                result = stream.device.execute(step, failing=script.fails_on(step))
                result.forward_micros, result.sample_micros = script.says_it_took
                stream.computed.append(step.id)
                if self.rank == 0 or result.error:
                    yield result
        except ProtocolViolation as violation:
            self.violations.append(violation)
            await context.abort(grpc.StatusCode.INTERNAL, f"violation: {violation}")
        finally:
            stream.is_open = False
            reader.cancel()

    async def Generate(
        self, request: shard_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[shard_pb2.GenerateResponse]:
        """Every input comes back as its own answer, in one piece."""
        self.generate_requests.append(request)
        if not request.inputs:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "there are no inputs")
        for index, text in enumerate(request.inputs if self.rank == 0 else ()):
            yield shard_pb2.GenerateResponse(index=index, text=text, finish_reason="length", generated_text=text)

    async def _read(self, steps: AsyncIterator[Step], stream: FakeStream, arrived: asyncio.Queue[Step | None]) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, grpc.RpcError):
            async for step in steps:
                stream.steps.append(step)
                arrived.put_nowait(step)
        arrived.put_nowait(None)


class FakeShards:
    """All ranks of one model. `async with` starts them, and in the end says what they have to complain of."""

    def __init__(self, uds_path: str, world_size: int = 1, script: Script | None = None) -> None:
        self.ranks = [FakeShard(uds_path, rank, world_size, script or Script()) for rank in range(world_size)]

    async def __aenter__(self) -> "FakeShards":
        for shard in self.ranks:
            await shard.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()
        self.check()

    async def stop(self) -> None:
        """As if the processes had died; what is under way breaks off."""
        await asyncio.gather(*(shard.stop() for shard in self.ranks))

    @property
    def streams(self) -> list[FakeStream]:
        return self.ranks[0].streams

    @property
    def steps(self) -> list[Step]:
        """What arrived at rank 0, over all of its streams."""
        return [step for stream in self.streams for step in stream.steps]

    def works(self, sequence_id: int) -> list[shard_pb2.Work]:
        return [work for step in self.steps for work in step.work if work.sequence_id == sequence_id]

    def has_dropped(self, sequence_id: int) -> bool:
        return any(sequence_id in step.drop for step in self.steps)

    def num_sampled(self, sequence_id: int) -> int:
        return sum(stream.device.num_sampled[sequence_id] for stream in self.streams)

    def check(self) -> None:
        """
        Raises:
            ProtocolViolation: the first one; or two ranks were told different things.
        """
        for shard in self.ranks:
            if shard.violations:
                raise shard.violations[0]
            for stream, first in zip(shard.streams, self.streams, strict=False):
                same = all(one == other for one, other in zip(stream.steps, first.steps, strict=False))
                _check(same, f"rank {shard.rank} got other steps than rank 0")

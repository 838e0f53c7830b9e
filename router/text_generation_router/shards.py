"""ShardGroup: one step to every rank, in one order, over long-lived streams; results from rank 0. The only file with
protobuf.

In: the scheduler's steps. Out: what was sampled. Also what the shards say of themselves, and, for clients without a
router, text in and text out. Knows nothing of queues and text.
"""

import asyncio
import collections
import dataclasses
from collections.abc import AsyncIterator, Callable

import grpc

from text_generation_proto import shard_pb2, shard_pb2_grpc
from text_generation_router import scheduler
from text_generation_router.errors import RouterError
from text_generation_router.sequence import PromptScore, SamplingParameters, Sequence, TopToken

GRPC_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel to a socket must not wait out the back-off of the last one
]


class ShardsLost(RouterError):
    """A shard cannot be reached or its stream broke. Its requests are not lost: they go on when it is back."""


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """What all shards agree on, and the smallest of what they have."""

    model_id: str
    model_type: str
    dtype: str
    device: str
    quantize: str | None
    num_shards: int
    block_size: int
    num_blocks: int
    max_positions: int
    max_batch_tokens: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    chunked_prefill: bool  # whether a prompt may be computed in parts
    prefix_cache: bool  # whether a sequence may begin with another one's blocks
    decoder_start_token_id: int | None = None  # set where an encoder reads the prompt: what the decoder begins with
    max_new_tokens: int | None = None  # of a decoder with positions of its own


NO_TOKENS: list[TopToken] = []


@dataclasses.dataclass(slots=True)  # not frozen: there is one for every token
class SampledToken:
    token_id: int
    logprob: float
    top_tokens: list[TopToken]  # as many as the sequence asked for


@dataclasses.dataclass(frozen=True, slots=True)
class StepResult:
    step_id: int
    tokens: dict[int, list[SampledToken]]  # by sequence id, in the order of their positions
    prompt_scores: dict[int, dict[int, PromptScore]]  # by sequence id and position
    error: str  # empty, or why the step's sequences are lost
    forward_seconds: float
    sample_seconds: float


class ShardGroup:
    """`on_news` is called, on the event loop, whenever `take_results` would have something to say."""

    def __init__(self, clients: list["ShardClient"], model: Model, on_news: Callable[[], None]) -> None:
        self.clients = clients
        self.model = model
        self._on_news = on_news
        self._results: collections.deque[StepResult] = collections.deque()
        self._lost: ShardsLost | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def connect(cls, uds_path: str, on_news: Callable[[], None] = lambda: None) -> "ShardGroup":
        """Asks rank 0 who the others are, and each of them what it has.

        Raises:
            ShardsLost: one of them does not answer.
        """
        clients = [ShardClient(0, f"unix:{uds_path}-0")]
        try:
            description = await clients[0].describe()
            clients += [ShardClient(rank, url) for rank, url in enumerate(description.shard_urls) if rank > 0]
            others = await asyncio.gather(*(client.describe() for client in clients[1:]))
        except ShardsLost:
            await asyncio.gather(*(client.channel.close() for client in clients))
            raise
        return cls(clients, _model([description, *others]), on_news)

    async def start(self) -> None:
        """Opens the streams that carry steps and results, rank 0's first: it decides which client may drive the shards.

        Raises:
            ShardsLost: another client drives them.
        """
        for client in self.clients:
            client.stream = client.stub.Execute()
            try:
                await client.accepted(client.stream)
            except ShardsLost:
                await self.close()
                raise
            self._tasks += [asyncio.create_task(self._write(client)), asyncio.create_task(self._read(client))]

    def send(self, step: scheduler.Step) -> None:
        """Queues one step for every rank; returns at once."""
        message = _step_message(step)
        for client in self.clients:
            client.outbox.put_nowait(message)

    def take_results(self) -> list[StepResult]:
        """What has come since the last call, in order.

        Raises:
            ShardsLost: a stream broke; results that came before are returned first.
        """
        if not self._results and self._lost:
            raise self._lost
        results = list(self._results)
        self._results.clear()
        if self._lost:
            self._on_news()
        return results

    async def generate(self, request: shard_pb2.GenerateRequest) -> AsyncIterator[shard_pb2.GenerateResponse]:
        """The same texts to every rank, for clients without a router; rank 0's answers.

        Raises:
            ShardsLost: the shards refuse or break off, with their reason.
        """
        calls: list[grpc.aio.UnaryStreamCall] = []
        try:
            for client in self.clients:
                calls.append(client.stub.Generate(request))
                await client.accepted(calls[-1])
            async for response in calls[0]:
                yield response
            for call in calls[1:]:
                async for _ in call:
                    pass
        except grpc.aio.AioRpcError as error:
            raise ShardsLost(str(error.details())) from error
        finally:
            for call in calls:
                call.cancel()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in self.clients:
            await client.channel.close()

    async def _write(self, client: "ShardClient") -> None:
        try:
            while True:
                await client.stream.write(await client.outbox.get())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the reader says why

    async def _read(self, client: "ShardClient") -> None:
        reason = "closed the stream"
        try:
            async for message in client.stream:
                if client.rank == 0:  # the others repeat its errors
                    self._results.append(_step_result(message))
                    self._on_news()
        except grpc.aio.AioRpcError as error:
            reason = f"is gone: {error.details() or error.code().name}"
        self._lost = self._lost or ShardsLost(f"shard rank {client.rank} {reason}")
        self._on_news()


class ShardClient:
    def __init__(self, rank: int, url: str) -> None:
        self.rank = rank
        self.url = url
        self.channel = grpc.aio.insecure_channel(url, options=GRPC_OPTIONS)
        self.stub = shard_pb2_grpc.ShardStub(self.channel)  # type: ignore[no-untyped-call]
        self.stream: grpc.aio.StreamStreamCall
        self.outbox: asyncio.Queue[shard_pb2.Step] = asyncio.Queue()

    async def accepted(self, call: grpc.aio.Call) -> None:
        """Returns when rank 0 has let the call in. The others let in whoever comes next, and may be busy until then."""
        if self.rank > 0:
            return
        await call.initial_metadata()
        if call.done():
            raise ShardsLost(f"shard rank {self.rank} refuses: {await call.details()}")

    async def describe(self) -> shard_pb2.DescribeResponse:
        try:
            description: shard_pb2.DescribeResponse = await self.stub.Describe(shard_pb2.DescribeRequest())
        except grpc.aio.AioRpcError as error:
            raise ShardsLost(f"shard rank {self.rank} does not answer at {self.url}") from error
        return description


def _model(descriptions: list[shard_pb2.DescribeResponse]) -> Model:
    first = descriptions[0]
    return Model(
        model_id=first.model_id,
        model_type=first.model_type,
        dtype=first.dtype,
        device=first.device,
        quantize=first.quantize or None,
        num_shards=first.world_size,
        block_size=first.block_size,
        num_blocks=min(description.num_blocks for description in descriptions),
        max_positions=first.max_positions,
        vocab_size=first.vocab_size,
        max_batch_tokens=min(description.max_batch_tokens for description in descriptions),
        eos_token_ids=frozenset(first.eos_token_ids),
        chunked_prefill=first.chunked_prefill,
        prefix_cache=first.prefix_cache,
        decoder_start_token_id=first.decoder_start_token_id if first.HasField("decoder_start_token_id") else None,
        max_new_tokens=first.max_new_tokens or None,
    )


def _step_message(step: scheduler.Step) -> shard_pb2.Step:
    message = shard_pb2.Step(
        id=step.id, drop=step.drop, num_iterations=step.num_iterations, num_speculative=step.num_speculative
    )
    message.add.extend(map(_sequence_message, step.add))
    for work in step.work:
        message.work.add(
            sequence_id=work.sequence.id,
            start=work.start,
            length=work.length,
            block_ids=work.block_ids,
            sample=work.num_tokens > 0,
        )
    return message


def _sequence_message(sequence: Sequence) -> shard_pb2.NewSequence:
    return shard_pb2.NewSequence(
        id=sequence.id,
        token_ids=sequence.token_ids,
        num_prompt_tokens=sequence.num_prompt_tokens,
        sampling=_sampling_message(sequence.request.sampling),
        num_top_tokens=sequence.request.num_top_tokens,
        prompt_logprobs=sequence.request.prompt_logprobs,
        max_new_tokens=sequence.request.max_new_tokens,
    )


def _sampling_message(sampling: SamplingParameters) -> shard_pb2.SamplingParameters:
    return shard_pb2.SamplingParameters(
        do_sample=sampling.do_sample,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        typical_p=sampling.typical_p,
        repetition_penalty=sampling.repetition_penalty,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        logit_bias=sampling.logit_bias,
        watermark=sampling.watermark,
        seed=sampling.seed,
    )


def _step_result(message: shard_pb2.StepResult) -> StepResult:
    tokens: dict[int, list[SampledToken]] = {}
    for token in message.tokens:
        top_tokens = NO_TOKENS
        if token.top_token_ids:
            top_tokens = list(zip(token.top_token_ids, token.top_logprobs, strict=True))
        tokens.setdefault(token.sequence_id, []).append(SampledToken(token.token_id, token.logprob, top_tokens))
    return StepResult(
        step_id=message.id,
        tokens=tokens,
        prompt_scores={prompt.sequence_id: _prompt_scores(prompt) for prompt in message.prompts},
        error=message.error,
        forward_seconds=message.forward_micros * 1e-6,
        sample_seconds=message.sample_micros * 1e-6,
    )


def _prompt_scores(message: shard_pb2.PromptLogprobs) -> dict[int, PromptScore]:
    num_top = len(message.top_token_ids) // max(1, len(message.logprobs))
    top_tokens = list(zip(message.top_token_ids, message.top_logprobs, strict=True))
    return {
        message.start + index: PromptScore(logprob, top_tokens[index * num_top : (index + 1) * num_top])
        for index, logprob in enumerate(message.logprobs)
    }

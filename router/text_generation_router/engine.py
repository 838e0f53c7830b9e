"""Engine: the loop that turns waiting sequences into streams of tokens: schedule, send, apply, deliver.

In: checked requests. Out: one stream of TokenEvents each. The only owner of the scheduler; it keeps the shards one step
ahead, and carries every request over a restart of the shards. Knows nothing of HTTP.
"""

import asyncio
import itertools
import logging
import time

from text_generation_router.block_manager import BlockManager
from text_generation_router.config import RouterConfig
from text_generation_router.errors import GenerationFailed, InternalError, NotReady, Overloaded, RequestError
from text_generation_router.limits import Limits, limits
from text_generation_router.metrics import Metrics
from text_generation_router.scheduler import Scheduler, Step
from text_generation_router.sequence import Request, Sequence
from text_generation_router.shards import Model, SampledToken, ShardGroup, ShardsLost, StepResult
from text_generation_router.stopping import FinishReason, StoppingCriteria
from text_generation_router.stream import GenerationStream, Mailbox
from text_generation_router.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

PIPELINE_DEPTH = 2  # one step runs, the next one is there when it ends
RECONNECT_SECONDS = 0.2
# Who got tokens, which, and whether they were the last ones.
Extended = list[tuple[GenerationStream, list[SampledToken], FinishReason | None]]
MAX_CRASHES = 3  # a request that was being computed in this many crashes is taken for their cause


class Place:
    """What a request holds among those in flight while it is checked, until it has sequences of its own."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._is_held = False

    def take(self) -> None:
        """
        Raises:
            NotReady, Overloaded: as `Engine.check_room`.
        """
        self._engine.check_room()
        self._is_held = True
        self._engine.num_places += 1

    def free(self) -> None:
        """Does nothing the second time, nor where it was never taken."""
        self._engine.num_places -= self._is_held
        self._is_held = False


class Engine:
    """`model` and `limits` are None until the shards have answered; `status` says "ready" or what is waited for."""

    def __init__(self, config: RouterConfig, tokenizer: Tokenizer, metrics: Metrics) -> None:
        self.model: Model | None = None
        self.limits: Limits | None = None
        self.status = "waiting for shards"
        self.num_places = 0  # of requests that are being checked
        self._config = config
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._last_result_seconds = 0.0
        self._last_cpu_seconds = time.process_time()
        self._scheduler: Scheduler | None = None
        self._streams: dict[int, GenerationStream] = {}
        self._ids = itertools.count()
        self._wake = asyncio.Event()
        self._stopping = False
        self._loop_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns at once; `status` follows the shards."""
        self._loop_task = asyncio.create_task(self._run())

    async def stop(self, grace_seconds: float) -> None:
        """Takes nothing new, lets what runs finish for `grace_seconds`, then fails it. Does nothing the second time."""
        self._stopping = True
        self.status = "shutting down"
        deadline = time.monotonic() + grace_seconds
        while self._streams and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        self._fail_all(GenerationFailed("the server is shutting down"))
        if self._loop_task:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)

    def check_room(self, num_requests: int = 1) -> None:
        """For so many more, before any work is put into them.

        Raises:
            NotReady: the shards have never answered yet, or the server is shutting down.
            Overloaded: too many requests are in flight.
        """
        if self.model is None:
            raise NotReady(self.status)
        if self._stopping:
            raise NotReady("the server is shutting down")
        if len(self._streams) + self.num_places + num_requests > self._config.max_concurrent_requests:
            raise Overloaded()

    def submit(self, requests: list[Request], mailbox: Mailbox) -> list[GenerationStream]:
        """Queues all of them or none; their events come to `mailbox`.

        Raises:
            NotReady, Overloaded: as `check_room`.
        """
        self.check_room(len(requests))
        assert self._scheduler is not None, "admitted before adopted: this is a bug"
        streams = [self._make_stream(request, mailbox) for request in requests]
        for stream in streams:
            self._streams[stream.sequence.id] = stream
            self._scheduler.add(stream.sequence)
        self._wake.set()
        return streams

    async def wait_failed(self) -> None:
        """Never returns; raises what ended the loop, if anything ever does. That would be a bug, and the process's end."""
        assert self._loop_task is not None, "waited for before it was started: this is a bug"
        await asyncio.shield(self._loop_task)

    def update_gauges(self) -> None:
        """Enters what is the case now into the metrics: for whoever is about to read them."""
        if self._scheduler is None or self.model is None or self.limits is None:
            return
        metrics, scheduler, blocks = self._metrics, self._scheduler, self._scheduler.block_manager
        metrics.queue_size.set(len(scheduler.waiting))
        metrics.num_requests_waiting.set(len(scheduler.waiting))
        metrics.batch_current_size.set(len(scheduler.running))
        metrics.num_requests_running.set(len(scheduler.running))
        metrics.batch_current_max_tokens.set(sum(s.num_prompt_tokens + s.request.max_new_tokens for s in scheduler.running))
        metrics.batch_max_total_tokens.set(blocks.num_blocks * blocks.block_size)
        metrics.kv_cache_utilization.set(1 - blocks.num_free / blocks.num_blocks)
        metrics.kv_cache_block_size.set(blocks.block_size)
        metrics.kv_cache_num_blocks.set(blocks.num_blocks)

    def _make_stream(self, request: Request, mailbox: Mailbox) -> GenerationStream:
        assert self.model is not None, "admitted before adopted: this is a bug"
        criteria = StoppingCriteria(request.max_new_tokens, self.model.eos_token_ids, request.stop, request.keep_stop)
        sequence, begins_text = Sequence(next(self._ids), request), self.model.decoder_start_token_id is not None
        return GenerationStream(sequence, criteria, self._tokenizer, mailbox, self._release, begins_text)

    def _release(self, stream: GenerationStream) -> None:
        """The reader is done: a sequence that still runs is dropped with the next step. Does nothing the second time."""
        if self._streams.pop(stream.sequence.id, None) and self._scheduler:
            self._scheduler.finish(stream.sequence)
            self._wake.set()

    async def _run(self) -> None:
        try:
            while True:
                await self._serve(await self._connect())
        except Exception:
            self.status = "failed"
            self._fail_all(InternalError())
            raise

    async def _serve(self, shards: ShardGroup) -> None:
        """Drives these shards until they are lost."""
        try:
            await self._drive(shards)
        except ShardsLost as error:
            logger.error("shards lost reason=%s requests=%d", error, len(self._streams))
            self.status = "waiting for shards to come back"
            self._interrupt()
            if self._stopping:  # nobody starts shards again now
                self._fail_all(GenerationFailed("the server is shutting down"))
        finally:
            await shards.close()

    async def _connect(self) -> ShardGroup:
        for attempt in itertools.count(1):
            try:
                shards = await ShardGroup.connect(self._config.shard_uds_path, self._wake.set)
                await shards.start()
                break
            except ShardsLost as error:
                if attempt % 50 == 0:
                    logger.info("waiting for shards: %s", error)
                await asyncio.sleep(RECONNECT_SECONDS)
        self._adopt(shards.model)
        return shards

    def _adopt(self, model: Model) -> None:
        """Sizes everything after what the shards have; what waits from before a restart goes on waiting."""
        self.model, self.limits = model, limits(self._config, model)
        budget = self._token_budget(model, self.limits)
        self._metrics.size_tokens(self.limits.max_input_tokens, self.limits.max_total_tokens)
        if self._scheduler is None:
            self._scheduler = Scheduler(
                self._block_manager(model), budget, self._config.max_batch_size, model.chunked_prefill, self._config.speculate
            )
        else:
            self._scheduler.interrupt(self._block_manager(model))
            self._scheduler.max_batch_tokens = budget
            self._fail_what_no_longer_fits(self.limits.max_total_tokens)
        self.status = "ready"
        self._wake.set()
        logger.info(
            "ready model_id=%s shards=%d num_blocks=%d max_total_tokens=%d max_batch_tokens=%d",
            model.model_id,
            model.num_shards,
            model.num_blocks,
            self.limits.max_total_tokens,
            budget,
        )

    def _fail_what_no_longer_fits(self, max_total_tokens: int) -> None:
        """Restarted shards may have found less memory: what they cannot hold would block the queue for ever."""
        for stream in self._streams.values():
            sequence = stream.sequence
            if sequence.num_prompt_tokens + sequence.request.max_new_tokens > max_total_tokens and not sequence.finished:
                assert self._scheduler is not None
                self._scheduler.finish(sequence)
                stream.fail(GenerationFailed(f"the restarted shards hold only {max_total_tokens} tokens of a request"))

    def _block_manager(self, model: Model) -> BlockManager:
        return BlockManager(model.num_blocks, model.block_size, self._config.prefix_caching and model.prefix_cache)

    def _token_budget(self, model: Model, limits: Limits) -> int:
        """Of a step. What cannot be computed in parts must fit as a whole, also with what it has generated so far."""
        budget = min(self._config.max_batch_prefill_tokens or model.max_batch_tokens, model.max_batch_tokens)
        return budget if model.chunked_prefill else max(budget, limits.max_total_tokens)

    async def _drive(self, shards: ShardGroup) -> None:
        assert self._scheduler is not None, "driven before adopted: this is a bug"
        while True:
            await self._wake.wait()
            self._wake.clear()
            newest: Extended = []
            for result in shards.take_results():
                self._deliver(newest)  # its text may end what this result goes on with
                newest = self._apply(result)
            while len(self._scheduler.in_flight) < PIPELINE_DEPTH and (step := self._scheduler.schedule()):
                shards.send(step)
                self._measure_sent(step)
            self._deliver(newest)  # while the shards compute

    def _apply(self, result: StepResult) -> Extended:
        """Enters a result's tokens. What ends by its token is known now, in time for the next step."""
        assert self._scheduler is not None
        step = self._scheduler.in_flight[0]
        assert result.step_id == step.id, "a result out of order: this is a bug"
        self._measure_result(step, result)
        for sequence_id, scores in result.prompt_scores.items():
            if sequence_id in self._streams:
                self._streams[sequence_id].sequence.prompt_scores.update(scores)
        if result.error:
            for sequence in self._scheduler.fail():
                self._streams[sequence.id].fail(GenerationFailed(f"Server error: {result.error}"))
            return []
        wanted = {number: self._cut(number, tokens) for number, tokens in result.tokens.items() if number in self._streams}
        token_ids = {number: [token.token_id for token in tokens] for number, (tokens, _) in wanted.items()}
        extended: Extended = []
        for sequence in self._scheduler.apply(token_ids):
            tokens, reason = wanted[sequence.id]
            if step.num_speculative:
                self._metrics.request_skipped_tokens.observe(len(tokens) - 1)
            if reason:
                self._scheduler.finish(sequence)
            extended.append((self._streams[sequence.id], tokens, reason))
        return extended

    def _cut(self, number: int, tokens: list[SampledToken]) -> tuple[list[SampledToken], FinishReason | None]:
        """The shards do not look for an end: what they decoded after it is thrown away."""
        stream = self._streams[number]
        if stream.sequence.finished:
            return tokens, None
        for index, token in enumerate(tokens):
            if reason := stream.ends_by_token(token.token_id):
                return tokens[: index + 1], reason
        return tokens, None

    def _deliver(self, extended: Extended) -> None:
        assert self._scheduler is not None
        for stream, tokens, reason in extended:
            for token in tokens:
                own_reason = reason if token is tokens[-1] else None
                if stream.push(token.token_id, token.logprob, token.top_tokens, own_reason):
                    self._scheduler.finish(stream.sequence)
                    break

    def _measure_sent(self, step: Step) -> None:
        assert self._scheduler is not None
        if step.work:
            self._metrics.batch_inference_count.inc(method=step.method)
        if step.add:
            self._metrics.batch_next_size.observe(len(step.add))
            if len(self._scheduler.running) > len(step.add):
                self._metrics.batch_concat.inc(reason="chunking")

    def _measure_result(self, step: Step, result: StepResult) -> None:
        """A step's time runs from when it could begin: it was sent, and the one before it was done."""
        metrics, method, now = self._metrics, step.method, time.monotonic()
        begin, self._last_result_seconds = max(step.made_seconds, self._last_result_seconds), now
        cpu_seconds = time.process_time()
        router_seconds, self._last_cpu_seconds = cpu_seconds - self._last_cpu_seconds, cpu_seconds
        if not step.work:
            return
        if result.error:
            metrics.batch_inference_failure.inc(method=method)
            return
        assert self._scheduler is not None
        step_seconds = result.forward_seconds + result.sample_seconds
        if step.num_prefill_tokens:
            self._scheduler.pace.learn_prefill(step.num_prefill_tokens, step.decodes, step_seconds)
        else:
            self._scheduler.pace.learn_decode(step.num_iterations, step_seconds)
        self._scheduler.pace.learn_router(router_seconds)
        metrics.batch_inference_success.inc(method=method)
        metrics.batch_inference_duration.observe(now - begin, method=method)
        metrics.batch_forward_duration.observe(result.forward_seconds, method=method)
        metrics.batch_decode_duration.observe(result.sample_seconds, method=method)

    def _interrupt(self) -> None:
        """Everything that ran waits for new shards, except what may have killed the old ones once too often."""
        assert self._scheduler is not None and self.model is not None
        for sequence in self._scheduler.interrupt(self._block_manager(self.model)):
            sequence.num_crashes += 1
            if sequence.num_crashes >= MAX_CRASHES:
                self._scheduler.finish(sequence)
                reason = f"the shards died {sequence.num_crashes} times while they computed this request"
                self._streams[sequence.id].fail(GenerationFailed(reason))

    def _fail_all(self, error: RequestError) -> None:
        for stream in self._streams.values():
            stream.fail(error)

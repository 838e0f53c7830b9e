"""FakeEngine: what the HTTP edge sees of an engine, answering every request with the same scripted tokens.

In: token ids, and how the script goes wrong or waits. Out: the interface of `text_generation_router.engine.Engine`.
"""

import asyncio
import time

from text_generation_router.errors import GenerationFailed, RequestError
from text_generation_router.limits import Limits
from text_generation_router.sequence import PromptScore, Request, Sequence
from text_generation_router.shards import Model
from text_generation_router.stopping import StoppingCriteria
from text_generation_router.stream import GenerationStream, Mailbox
from text_generation_router.tokenizer import Tokenizer

MODEL = Model(
    model_id="tiny",
    model_type="bloom",
    dtype="float32",
    device="cpu",
    quantize=None,
    num_shards=2,
    block_size=16,
    num_blocks=64,
    max_positions=128,
    eos_token_ids=frozenset({2}),
    max_batch_tokens=64,
    vocab_size=340,
    chunked_prefill=True,
    prefix_cache=True,
)
LIMITS = Limits(max_input_tokens=20, max_total_tokens=32, vocab_size=340)
LOGPROB = -0.5
PROMPT_LOGPROB = -0.75


class FakeEngine:
    def __init__(self, tokenizer: Tokenizer, token_ids: list[int]) -> None:
        self.model: Model | None = MODEL
        self.limits: Limits | None = LIMITS
        self.status = "ready"
        self.num_places = 0
        self.tokenizer = tokenizer
        self.token_ids = token_ids
        self.refusal: Exception | None = None  # raised by submit
        self.failure: Exception | None = None  # comes instead of the last token
        self.goes_on: asyncio.Event | None = None  # waited for before the last token
        self.requests: list[Request] = []
        self.streams: list[FakeStream] = []
        self.calls: list[str] = []

    async def start(self) -> None:
        self.calls.append("start")

    async def stop(self, grace_seconds: float) -> None:
        self.calls.append("stop")
        deadline = time.monotonic() + grace_seconds
        while not all(stream.cancelled.is_set() for stream in self.streams) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        for stream in self.streams:
            stream.fail(GenerationFailed("the server is shutting down"))

    async def wait_failed(self) -> None:
        await asyncio.Event().wait()

    def update_gauges(self) -> None:
        self.calls.append("update_gauges")

    def check_room(self, num_requests: int = 1) -> None:
        if self.refusal:
            raise self.refusal

    def submit(self, requests: list[Request], mailbox: Mailbox) -> "list[FakeStream]":
        if self.refusal:
            raise self.refusal
        self.requests += requests
        new = [FakeStream(self, request, len(self.streams) + index, mailbox) for index, request in enumerate(requests)]
        self.streams += new
        return new


class FakeStream(GenerationStream):
    """The real one, fed with the script by a task of its own."""

    def __init__(self, engine: FakeEngine, request: Request, sequence_id: int, mailbox: Mailbox) -> None:
        self.num_cancels = 0
        self.cancelled = asyncio.Event()
        sequence = Sequence(sequence_id, request, first_scheduled_seconds=time.monotonic() + 0.001)
        if request.prompt_logprobs:
            top_tokens = [(5 + rank, PROMPT_LOGPROB - rank) for rank in range(request.num_top_tokens)]
            for position in range(1, len(request.prompt_token_ids)):
                sequence.prompt_scores[position] = PromptScore(PROMPT_LOGPROB, top_tokens)
        criteria = StoppingCriteria(request.max_new_tokens, MODEL.eos_token_ids, request.stop, request.keep_stop)
        super().__init__(sequence, criteria, engine.tokenizer, mailbox, on_cancel=self._count_cancel)
        self._task = asyncio.get_running_loop().create_task(self._feed(engine))

    def _count_cancel(self, stream: GenerationStream) -> None:
        self.num_cancels += 1
        self.cancelled.set()
        self._task.cancel()

    async def _feed(self, engine: FakeEngine) -> None:
        """All of the script's tokens, or those up to the request's own end."""
        for position, token_id in enumerate(engine.token_ids):
            is_last = position == len(engine.token_ids) - 1
            if is_last and engine.goes_on:
                await engine.goes_on.wait()
            if is_last and engine.failure:
                self.fail(engine.failure)  # type: ignore[arg-type]
                return
            reason = self.ends_by_token(token_id)
            top_tokens = [(token_id + rank, LOGPROB - rank) for rank in range(self.sequence.request.num_top_tokens)]
            if self.push(token_id, LOGPROB, top_tokens, "eos_token" if is_last else reason) or reason:
                return
            await asyncio.sleep(0)

    def fail(self, error: RequestError) -> None:
        self._mailbox.put(self, error)

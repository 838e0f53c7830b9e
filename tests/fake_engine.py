"""FakeEngine: what the HTTP edge sees of an engine, answering every request with the same scripted tokens.

In: token ids, and how the script goes wrong or waits. Out: the interface of `text_generation_router.engine.Engine`.
"""

import asyncio
import time
from collections.abc import AsyncIterator

from text_generation_router.engine import Limits
from text_generation_router.errors import GenerationFailed
from text_generation_router.sequence import Request, Sequence
from text_generation_router.shards import Model
from text_generation_router.stream import TokenEvent
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
)
LIMITS = Limits(max_input_tokens=20, max_total_tokens=32)


class FakeEngine:
    def __init__(self, tokenizer: Tokenizer, token_ids: list[int]) -> None:
        self.model: Model | None = MODEL
        self.limits: Limits | None = LIMITS
        self.status = "ready"
        self.tokenizer = tokenizer
        self.token_ids = token_ids
        self.refusal: Exception | None = None  # raised by submit
        self.failure: Exception | None = None  # raised by streams after their tokens
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
            stream.shut_down.set()

    async def wait_failed(self) -> None:
        await asyncio.Event().wait()

    def admit(self) -> None:
        if self.refusal:
            raise self.refusal

    def submit(self, request: Request) -> "FakeStream":
        self.admit()
        self.requests.append(request)
        self.streams.append(FakeStream(self, request))
        return self.streams[-1]


class FakeStream:
    def __init__(self, engine: FakeEngine, request: Request) -> None:
        self.engine = engine
        self.sequence = Sequence(len(engine.streams), request)
        self.queue_seconds = 0.001
        self.num_cancels = 0
        self.cancelled = asyncio.Event()
        self.shut_down = asyncio.Event()

    def cancel(self) -> None:
        self.num_cancels += 1
        self.cancelled.set()

    async def _is_shut_down(self, goes_on: asyncio.Event) -> bool:
        waits = [asyncio.create_task(event.wait()) for event in (goes_on, self.shut_down)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return self.shut_down.is_set()

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        tokenizer, token_ids = self.engine.tokenizer, self.engine.token_ids
        detokenizer, whole = tokenizer.detokenizer(), ""
        for position, token_id in enumerate(token_ids):
            is_last = position == len(token_ids) - 1
            if is_last and self.engine.goes_on and await self._is_shut_down(self.engine.goes_on):
                raise GenerationFailed("the server is shutting down")
            if is_last and self.engine.failure:
                raise self.engine.failure
            text = detokenizer.push(token_id)
            whole += text
            special = token_id in tokenizer.special_token_ids
            yield TokenEvent(
                token_id=token_id,
                text=tokenizer.token_text(token_id) if special else text,
                logprob=-0.5,
                special=special,
                finish_reason="eos_token" if is_last else None,
                generated_text=whole if is_last else None,
            )

"""The native API: POST /generate, POST /generate_stream, GET /health, GET /info.

In: HTTP requests. Out: what the engine generated for them, as one JSON body or as a stream of events. A request is
checked before its stream opens, so what is wrong with it is a status; a client that goes away cancels its generation.
Knows nothing of queues, batches and shards.
"""

import contextlib
import dataclasses
import importlib.metadata
import logging
import time
from collections.abc import Iterator

from aiohttp import web

from text_generation_router import schema
from text_generation_router.config import RouterConfig
from text_generation_router.engine import Engine, Limits
from text_generation_router.errors import NotReady, Unhealthy
from text_generation_router.sequence import Request
from text_generation_router.shards import Model
from text_generation_router.sse import EventStream
from text_generation_router.stream import GenerationStream, TokenEvent
from text_generation_router.validation import Validation

logger = logging.getLogger(__name__)


class GenerateApi:
    def __init__(self, config: RouterConfig, engine: Engine, validation: Validation) -> None:
        self._config = config
        self._engine = engine
        self._validation = validation

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/generate", self.generate),
            web.post("/generate_stream", self.generate_stream),
            web.get("/health", self.health),
            web.get("/info", self.info),
        ]

    async def generate(self, http_request: web.Request) -> web.Response:
        checked = await self._check(http_request, streamed=False)
        with self._submitted(checked) as generation:
            events = [generation.passed(event) async for event in generation.stream]
        headers = self._headers(checked) | generation.headers()
        return web.Response(
            body=schema.encode(_response(checked, events)), content_type="application/json", headers=headers
        )

    async def generate_stream(self, http_request: web.Request) -> web.StreamResponse:
        checked = await self._check(http_request, streamed=True)
        with self._submitted(checked) as generation:
            async with EventStream(http_request, self._headers(checked)) as events:
                async for event in generation.stream:
                    generation.passed(event)
                    await events.send(_stream_response(checked, event, generation.num_tokens))
        return events.response

    async def health(self, http_request: web.Request) -> web.Response:
        if self._engine.status != "ready":
            raise Unhealthy(self._engine.status)
        return web.Response()

    async def info(self, http_request: web.Request) -> web.Response:
        model, limits = self._served()
        body = schema.Info(
            model_id=self._config.model_id or model.model_id,
            model_type=model.model_type,
            model_dtype=model.dtype,
            model_device_type=model.device,
            model_quantize=model.quantize,
            num_shard=model.num_shards,
            max_concurrent_requests=self._config.max_concurrent_requests,
            max_best_of=1,
            max_stop_sequences=self._config.max_stop_sequences,
            max_input_tokens=limits.max_input_tokens,
            max_total_tokens=limits.max_total_tokens,
            validation_workers=self._config.validation_workers,
            max_client_batch_size=1,
            router="text-generation-router",
            version=importlib.metadata.version("text-generation-inference"),
        )
        return web.Response(body=schema.encode(body), content_type="application/json")

    def _served(self) -> tuple[Model, Limits]:
        if self._engine.model is None or self._engine.limits is None:
            raise NotReady(self._engine.status)
        return self._engine.model, self._engine.limits

    async def _check(self, http_request: web.Request, *, streamed: bool) -> "_Checked":
        start_seconds = time.monotonic()
        self._engine.admit()
        body = schema.decode(await http_request.read(), schema.GenerateRequest)
        _, limits = self._served()
        request = await self._validation.check(body, limits, streamed=streamed)
        parameters = body.parameters or schema.GenerateParameters()
        return _Checked(body.inputs, parameters, request, start_seconds, time.monotonic())

    @contextlib.contextmanager
    def _submitted(self, checked: "_Checked") -> Iterator["_Generation"]:
        """A generation that ends when this block does, however it does."""
        generation = _Generation(checked, self._engine.submit(checked.request))
        try:
            yield generation
        finally:
            generation.stream.cancel()
            generation.log()

    def _headers(self, checked: "_Checked") -> dict[str, str]:
        model, _ = self._served()
        return {
            "x-compute-type": f"{model.num_shards}-{model.device}",
            "x-compute-characters": str(len(checked.inputs)),
        }


@dataclasses.dataclass(frozen=True, slots=True)
class _Checked:
    """A request that may be generated, and the clock readings of its way here."""

    inputs: str
    parameters: schema.GenerateParameters
    request: Request
    start_seconds: float
    valid_seconds: float

    @property
    def shown_seed(self) -> int | None:
        return self.request.sampling.seed if self.request.sampling.do_sample else None

    def full_text(self, generated_text: str) -> str:
        return self.inputs + generated_text if self.parameters.return_full_text else generated_text


@dataclasses.dataclass(slots=True)
class _Generation:
    """One request in the engine: its stream, and what headers and the log say of it at the end."""

    checked: _Checked
    stream: GenerationStream
    num_tokens: int = 0
    finish_reason: str | None = None

    def passed(self, event: TokenEvent) -> TokenEvent:
        self.num_tokens += 1
        self.finish_reason = event.finish_reason
        return event

    def headers(self) -> dict[str, str]:
        """Times in whole milliseconds, `x-compute-time` in seconds, as the original has them."""
        total = time.monotonic() - self.checked.start_seconds
        validation = self.checked.valid_seconds - self.checked.start_seconds
        inference = max(0.0, total - validation - self.stream.queue_seconds)
        return {
            "x-compute-time": f"{total:.6f}",
            "x-total-time": _milliseconds(total),
            "x-validation-time": _milliseconds(validation),
            "x-queue-time": _milliseconds(self.stream.queue_seconds),
            "x-inference-time": _milliseconds(inference),
            "x-time-per-token": _milliseconds(inference / max(1, self.num_tokens)),
            "x-prompt-tokens": str(self.stream.sequence.num_prompt_tokens),
            "x-generated-tokens": str(self.num_tokens),
        }

    def log(self) -> None:
        logger.info(
            "request finished id=%d prompt_tokens=%d cached_tokens=%d generated_tokens=%d finish_reason=%s "
            "queue_seconds=%.4f total_seconds=%.4f",
            self.stream.sequence.id,
            self.stream.sequence.num_prompt_tokens,
            self.stream.sequence.num_cached_tokens,
            self.num_tokens,
            self.finish_reason or "aborted",
            self.stream.queue_seconds,
            time.monotonic() - self.checked.start_seconds,
        )


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))


def _response(checked: _Checked, events: list[TokenEvent]) -> schema.GenerateResponse:
    last = events[-1]
    assert last.finish_reason is not None and last.generated_text is not None, "a stream without an end: this is a bug"
    response = schema.GenerateResponse(checked.full_text(last.generated_text))
    if checked.parameters.details:
        tokens = [_token(event) for event in events]
        response.details = schema.Details(last.finish_reason, len(tokens), checked.shown_seed, [], tokens)
    return response


def _stream_response(checked: _Checked, event: TokenEvent, index: int) -> schema.StreamResponse:
    response = schema.StreamResponse(index, _token(event))
    if event.finish_reason is not None and event.generated_text is not None:
        response.generated_text = checked.full_text(event.generated_text)
        if checked.parameters.details:
            num_input_tokens = len(checked.request.prompt_token_ids)
            response.details = schema.StreamDetails(event.finish_reason, index, checked.shown_seed, num_input_tokens)
    return response


def _token(event: TokenEvent) -> schema.Token:
    return schema.Token(event.token_id, event.text, event.logprob, event.special)

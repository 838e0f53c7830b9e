"""Serving: what every handler works with, and the way from an HTTP request to a decoded body.

In: HTTP requests. Out: bodies by their types, the served model and its limits, generations. Knows nothing of routes.
"""

import asyncio
import dataclasses
import importlib.metadata

from aiohttp import web

from text_generation_router.api.generation import Arrival, Checked, Generation
from text_generation_router.api.route import ARRIVAL
from text_generation_router.chat_template import ChatTemplate
from text_generation_router.config import RouterConfig
from text_generation_router.engine import Engine
from text_generation_router.errors import MalformedBody, NotReady, PayloadTooLarge, RequestTimeout, ValidationError
from text_generation_router.limits import Limits
from text_generation_router.metrics import Metrics
from text_generation_router.schema.body import Body, decode
from text_generation_router.shards import Model
from text_generation_router.tokenizer import Tokenizer
from text_generation_router.validation import Validation

BODY_SECONDS = 60.0  # for a body to come; a connection that sends half of one does not stay for ever
VERSION = importlib.metadata.version("text-generation-inference")


@dataclasses.dataclass(frozen=True, slots=True)
class Serving:
    config: RouterConfig
    engine: Engine
    tokenizer: Tokenizer
    chat_template: ChatTemplate
    validation: Validation
    metrics: Metrics
    body_seconds: float = BODY_SECONDS

    async def read(self, http_request: web.Request, body_type: type[Body]) -> Body:
        """
        Raises:
            RequestError: the body does not come, is too large, or is not of the type.
        """
        return decode(await self.read_bytes(http_request), body_type)

    async def read_bytes(self, http_request: web.Request) -> bytes:
        """A request that generates has its place among those in flight afterwards.

        Raises:
            RequestError: as `read`, or there is no place left.
        """
        content = await self._content(http_request)
        if arrival := http_request.get(ARRIVAL):
            arrival.place.take()
        return content

    async def _content(self, http_request: web.Request) -> bytes:
        try:
            async with asyncio.timeout(self.body_seconds):
                return await http_request.read()
        except TimeoutError as error:
            raise RequestTimeout(self.body_seconds) from error
        except web.HTTPRequestEntityTooLarge as error:
            raise PayloadTooLarge(self.config.payload_limit) from error
        except web.RequestPayloadError as error:
            raise MalformedBody(f"The body cannot be read: {error}") from error

    def served(self) -> tuple[Model, Limits]:
        """
        Raises:
            NotReady: the shards have never answered yet.
        """
        if self.engine.model is None or self.engine.limits is None:
            raise NotReady(self.engine.status)
        return self.engine.model, self.engine.limits

    @property
    def limits(self) -> Limits:
        return self.served()[1]

    @property
    def model_name(self) -> str:
        return self.config.model_id or self.served()[0].model_id

    @property
    def compute_type(self) -> str:
        model, _ = self.served()
        return self.config.compute_type or f"{model.num_shards}-{model.device}"

    def generation(self, checked: Checked, arrival: Arrival) -> Generation:
        """All sequences of one HTTP request, to be used with `with`.

        Raises:
            ValidationError: there are more of them than may ever run.
            NotReady, Overloaded: the engine does not take them now.
        """
        number, maximum = len(checked.requests), self.config.max_concurrent_requests
        if number > maximum:
            raise ValidationError(f"one request may ask for {maximum} sequences at most. Given: {number}")
        return Generation(self.engine, self.metrics, checked, arrival, self.compute_type)

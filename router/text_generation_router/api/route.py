"""Route: one method and path, the types of what goes in and comes out, and the handler in between.

The application and the OpenAPI document are both made of these, so that the document cannot say anything else than the code.
"""

import dataclasses
import http
from collections.abc import Awaitable, Callable
from typing import Literal

from aiohttp import web

from text_generation_router.api.generation import Arrival
from text_generation_router.errors import RequestError
from text_generation_router.schema import body

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ARRIVAL = web.RequestKey("arrival", Arrival)
OPENAI_ERRORS = web.RequestKey("openai_errors", bool)  # set where the route alone does not say it
GENERATION_ERRORS = (400, 401, 408, 413, 422, 424, 429, 500, 503)
READING_ERRORS = (400, 401, 408, 413, 422, 500, 503)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    method: Literal["GET", "POST"]
    path: str
    handler: Handler
    summary: str
    tag: str
    requests: tuple[object, ...] = ()  # types that its JSON body may have
    responses: tuple[object, ...] = ()  # types that its JSON answer may have
    events: tuple[object, ...] = ()  # types that each event may have, where the answer may be a stream
    text: str | None = None  # the content type of an answer that is no JSON
    errors: tuple[int, ...] = ()
    generates: bool = False  # counted in the metrics of requests
    needs_key: bool = True
    openai_errors: bool | None = False  # None: it depends on the body

    @property
    def error_types(self) -> tuple[object, ...]:
        both = (body.ErrorBody, body.OpenAIErrorBody)
        return both if self.openai_errors is None else (both[1] if self.openai_errors else both[0],)


def error_body(error: RequestError, openai: bool) -> body.ErrorBody | body.OpenAIErrorBody:
    return body.openai_error(error) if openai else body.native_error(error)


def json_response(answer: object, status: int = http.HTTPStatus.OK, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=body.encode(answer), status=status, content_type="application/json", headers=headers)

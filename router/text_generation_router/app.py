"""build_app: the HTTP application: its routes, what holds for all of them, and what lives as long as it does.

In: the configuration, an engine, a tokenizer, a chat template, metrics. Out: an aiohttp application. Every request passes,
from the outside in: errors become bodies, the key is checked, the outcome is counted, the handler runs.
Knows nothing of what the routes do.
"""

import asyncio
import hmac
import logging
import time

from aiohttp import web
from aiohttp.typedefs import Handler

from text_generation_router.api.chat import ChatApi
from text_generation_router.api.completions import CompletionsApi
from text_generation_router.api.cors import Cors
from text_generation_router.api.generate import GenerateApi
from text_generation_router.api.generation import Arrival
from text_generation_router.api.platforms import PlatformsApi
from text_generation_router.api.route import ARRIVAL, OPENAI_ERRORS, Route, error_body, json_response
from text_generation_router.api.serving import Serving
from text_generation_router.api.status import StatusApi
from text_generation_router.api.tokenize import TokenizeApi
from text_generation_router.engine import Place
from text_generation_router.errors import InternalError, RequestError, Unauthorized
from text_generation_router.sse import FAILURE

SERVING = web.AppKey("serving", Serving)
ROUTES = web.AppKey("routes", dict)
_FAILURES = {"overloaded": "overloaded", "template_error": "template", "generation": "generation"}

logger = logging.getLogger(__name__)


def build_app(serving: Serving) -> web.Application:
    cors = Cors(serving.config.cors_allow_origin)
    app = web.Application(
        middlewares=[cors.preflight, _errors_as_json, _authorized, _counted], client_max_size=serving.config.payload_limit
    )
    app[SERVING] = serving
    routes = _routes(serving)
    app[ROUTES] = {(route.method, route.path): route for route in routes}
    app.add_routes([web.route(route.method, route.path, route.handler) for route in routes])
    app.on_response_prepare.append(cors.allow)
    return app


def _routes(serving: Serving) -> list[Route]:
    generate, chat, completions = GenerateApi(serving), ChatApi(serving), CompletionsApi(serving)
    status = StatusApi(serving)
    routes = [*generate.routes(), *chat.routes(), *completions.routes(), *TokenizeApi(serving).routes()]
    routes += [*PlatformsApi(serving, generate, chat, completions).routes(), *status.routes()]
    status.describe(routes)
    return routes


def _route(request: web.Request) -> Route | None:
    resource = request.match_info.route.resource
    return request.app[ROUTES].get((request.method, resource.canonical)) if resource else None


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every refusal and failure leaves as a JSON body; what nobody foresaw is logged and stays inside."""
    try:
        return await handler(request)
    except RequestError as error:
        return _error_response(request, error)
    except web.HTTPException as error:
        return _http_error(request, error)
    except Exception:
        logger.exception("request failed: %s %s", request.method, request.path)
        return _error_response(request, InternalError())


@web.middleware
async def _authorized(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Keys are compared as they are, and in a time that does not tell how much of one is right."""
    keys, route = request.app[SERVING].config.api_key, _route(request)
    if keys and route and route.needs_key:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        known = [hmac.compare_digest(given.encode(errors="surrogateescape"), key.encode()) for key in keys]
        if scheme.lower() != "bearer" or not any(known):
            raise Unauthorized()
    return await handler(request)


@web.middleware
async def _counted(request: web.Request, handler: Handler) -> web.StreamResponse:
    """One request is one request, however many sequences it has, and succeeds or fails once."""
    route, metrics = _route(request), request.app[SERVING].metrics
    if route is None or not route.generates:
        return await handler(request)
    metrics.request_count.inc()
    try:
        response = await _admitted(request, handler)
    except (Exception, asyncio.CancelledError) as error:
        metrics.request_failure.inc(err=_failure(error))
        raise
    failure = request.get(FAILURE)  # in a stream that had begun
    if failure is None:
        metrics.request_success.inc()
    else:
        metrics.request_failure.inc(err=_failure(failure))
    return response


async def _admitted(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses at once what there is no room for, before its body is read; with that it takes a place, not before: who sends
    none takes none."""
    engine = request.app[SERVING].engine
    engine.check_room()
    arrival = Arrival(time.monotonic(), Place(engine))
    request[ARRIVAL] = arrival
    try:
        return await handler(request)
    finally:
        arrival.place.free()


def _failure(error: BaseException) -> str:
    if isinstance(error, RequestError):
        return _FAILURES.get(error.error_type, "validation" if error.status < 500 else "incomplete")
    return "dropped" if isinstance(error, asyncio.CancelledError | ConnectionError) else "incomplete"


def _error_response(request: web.Request, error: RequestError) -> web.Response:
    route = _route(request)
    openai = request.get(OPENAI_ERRORS, route.openai_errors if route else request.path.startswith("/v1/"))
    headers = {"www-authenticate": "Bearer"} if isinstance(error, Unauthorized) else None
    return json_response(error_body(error, bool(openai)), error.status, headers)


def _http_error(request: web.Request, error: web.HTTPException) -> web.Response:
    """aiohttp's own: no such route (404), another method (405, which keeps its `Allow` header)."""
    same = RequestError(f"{request.method} {request.path}: {error.reason}")
    same.status, same.error_type = error.status, error.reason.lower().replace(" ", "_")
    response = _error_response(request, same)
    response.headers.update({name: value for name, value in error.headers.items() if name == "Allow"})
    return response

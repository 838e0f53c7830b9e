"""build_app: the HTTP application: its routes, its one way to answer errors, and what lives as long as it does.

In: the configuration, an engine, a tokenizer. Out: an aiohttp application; starting it starts the engine.
Knows nothing of what the routes do.
"""

import logging
from collections.abc import AsyncIterator

from aiohttp import web
from aiohttp.typedefs import Handler

from text_generation_router import schema
from text_generation_router.api_generate import GenerateApi
from text_generation_router.config import RouterConfig
from text_generation_router.engine import Engine
from text_generation_router.errors import InternalError, MalformedBody, PayloadTooLarge, RequestError
from text_generation_router.tokenizer import Tokenizer
from text_generation_router.validation import Validation

MAX_BODY_BYTES = 2_000_000

ENGINE = web.AppKey("engine", Engine)
TOKENIZER = web.AppKey("tokenizer", Tokenizer)

logger = logging.getLogger(__name__)


def build_app(config: RouterConfig, engine: Engine, tokenizer: Tokenizer) -> web.Application:
    app = web.Application(middlewares=[errors_as_json], client_max_size=MAX_BODY_BYTES)
    app[ENGINE], app[TOKENIZER] = engine, tokenizer
    validation = Validation(tokenizer, config.max_stop_sequences)
    app.add_routes(GenerateApi(config, engine, validation).routes())
    app.cleanup_ctx.append(_running_engine)
    return app


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every refusal and failure leaves as {"error", "error_type"}; what nobody foresaw is logged and stays inside."""
    try:
        return await handler(request)
    except RequestError as error:
        return _json(error)
    except web.HTTPRequestEntityTooLarge:
        return _json(PayloadTooLarge(MAX_BODY_BYTES))
    except web.RequestPayloadError as error:
        return _json(MalformedBody(f"The body cannot be read: {error}"))
    except web.HTTPException as error:
        return _http_error(request, error)
    except Exception:
        logger.exception("request failed: %s %s", request.method, request.path)
        return _json(InternalError())


def _json(error: RequestError) -> web.Response:
    body = schema.encode(schema.ErrorBody(str(error), error.error_type))
    return web.Response(body=body, status=error.status, content_type="application/json")


def _http_error(request: web.Request, error: web.HTTPException) -> web.Response:
    """aiohttp's own: no such route (404), another method (405, which keeps its `Allow` header)."""
    message, error_type = f"{request.method} {request.path}: {error.reason}", error.reason.lower().replace(" ", "_")
    headers = {name: value for name, value in error.headers.items() if name == "Allow"}
    body = schema.encode(schema.ErrorBody(message, error_type))
    return web.Response(body=body, status=error.status, content_type="application/json", headers=headers)


async def _running_engine(app: web.Application) -> AsyncIterator[None]:
    await app[ENGINE].start()
    yield
    await app[ENGINE].stop(grace_seconds=0)
    app[TOKENIZER].close()

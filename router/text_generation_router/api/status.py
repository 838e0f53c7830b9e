"""What a server says of itself: health, model, limits, metrics, and its own documentation.

In: HTTP requests without a body. Out: JSON, Prometheus' text format, a page. Health answers from the first second on.
"""

from typing import Any

from aiohttp import web

from text_generation_router.api import docs_page, openapi
from text_generation_router.api.route import Route, json_response
from text_generation_router.api.serving import VERSION, Serving
from text_generation_router.errors import Unhealthy
from text_generation_router.metrics import CONTENT_TYPE
from text_generation_router.schema.openai import ModelCard, ModelList
from text_generation_router.schema.service import Info


class StatusApi:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._document: dict[str, Any] = {}

    def routes(self) -> list[Route]:
        return [
            *(self._health_route(path) for path in ("/", "/health", "/ping")),
            Route(
                method="GET",
                path="/info",
                handler=self._info,
                summary="The model and the limits",
                tag="Status",
                responses=(Info,),
                errors=(503,),
                needs_key=False,
            ),
            Route(
                method="GET",
                path="/v1/models",
                handler=self._models,
                summary="The one model that is served",
                tag="OpenAI",
                responses=(ModelList,),
                errors=(503,),
                needs_key=False,
                openai_errors=True,
            ),
            Route(
                method="GET",
                path="/metrics",
                handler=self._metrics,
                summary="Metrics for Prometheus",
                tag="Status",
                text="text/plain",
                needs_key=False,
            ),
            Route(
                method="GET",
                path="/docs",
                handler=self._docs,
                summary="This document as a page",
                tag="Status",
                text="text/html",
                needs_key=False,
            ),
            Route(
                method="GET",
                path="/api-doc/openapi.json",
                handler=self._openapi,
                summary="This document",
                tag="Status",
                responses=(dict[str, Any],),
                needs_key=False,
            ),
        ]

    def describe(self, routes: list[Route]) -> None:
        """Makes the documentation of all routes, these included."""
        self._document = openapi.document(routes, VERSION)

    def _health_route(self, path: str) -> Route:
        return Route(
            method="GET",
            path=path,
            handler=self._health,
            summary="200 when a step can run; 503 with what is waited for when not",
            tag="Status",
            errors=(503,),
            needs_key=False,
        )

    async def _health(self, http_request: web.Request) -> web.StreamResponse:
        if self._serving.engine.status != "ready":
            raise Unhealthy(self._serving.engine.status)
        return web.Response()

    async def _info(self, http_request: web.Request) -> web.StreamResponse:
        model, limits = self._serving.served()
        config = self._serving.config
        info = Info(
            model_id=self._serving.model_name,
            model_type=model.model_type,
            model_dtype=model.dtype,
            model_device_type=model.device,
            model_quantize=model.quantize,
            num_shard=model.num_shards,
            max_concurrent_requests=config.max_concurrent_requests,
            max_best_of=config.max_best_of,
            max_stop_sequences=config.max_stop_sequences,
            max_input_tokens=limits.max_input_tokens,
            max_total_tokens=limits.max_total_tokens,
            validation_workers=config.validation_workers,
            max_client_batch_size=config.max_client_batch_size,
            router="text-generation-router",
            version=VERSION,
        )
        return json_response(info)

    async def _models(self, http_request: web.Request) -> web.StreamResponse:
        name = self._serving.model_name
        return json_response(ModelList("list", [ModelCard(name, "model", 0, name)]))

    async def _metrics(self, http_request: web.Request) -> web.StreamResponse:
        self._serving.engine.update_gauges()
        return web.Response(body=self._serving.metrics.render(), headers={"content-type": CONTENT_TYPE})

    async def _docs(self, http_request: web.Request) -> web.StreamResponse:
        return web.Response(text=docs_page.render(self._document), content_type="text/html")

    async def _openapi(self, http_request: web.Request) -> web.StreamResponse:
        return json_response(self._document)

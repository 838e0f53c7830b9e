"""The OpenAPI document, made of the routes and of the types that their handlers decode and encode.

In: routes. Out: a document of OpenAPI 3.2 (https://spec.openapis.org/oas/v3.2.0), the first that can describe events.
Knows nothing that the types do not say.
"""

import http
from collections.abc import Iterable

from text_generation_router.api.route import Route
from text_generation_router.schema.body import json_schemas

Json = dict[str, object]


def document(routes: list[Route], version: str) -> Json:
    types = [kind for route in routes for kind in _types(route)]
    schemas, components = json_schemas(types)
    schema_of = dict(zip(map(repr, types), schemas, strict=True))
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of)
    return {
        "openapi": "3.2.0",
        "info": {"title": "Text Generation Inference", "version": version},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "only with --api-key"}},
        },
    }


def _types(route: Route) -> list[object]:
    return [*route.requests, *route.responses, *route.events, *(route.error_types if route.errors else ())]


def _operation(route: Route, schema_of: dict[str, Json]) -> Json:
    operation: Json = {"summary": route.summary, "tags": [route.tag], "responses": _responses(route, schema_of)}
    if route.requests:
        content = {"application/json": {"schema": _any_of(route.requests, schema_of)}}
        operation["requestBody"] = {"required": True, "content": content}
    if route.needs_key:
        operation["security"] = [{}, {"key": []}]
    return operation


def _responses(route: Route, schema_of: dict[str, Json]) -> Json:
    content: Json = {}
    if route.responses:
        content["application/json"] = {"schema": _any_of(route.responses, schema_of)}
    if route.text is not None:
        content[route.text] = {"schema": {"type": "string"}}
    if route.events:
        content["text/event-stream"] = {"itemSchema": _event(route, schema_of)}
    responses: Json = {"200": {"description": "OK", **({"content": content} if content else {})}}
    for status in route.errors:
        responses[str(status)] = {
            "description": http.HTTPStatus(status).phrase,
            "content": {"application/json": {"schema": _any_of(route.error_types, schema_of)}},
        }
    return responses


def _event(route: Route, schema_of: dict[str, Json]) -> Json:
    """An event's data: what is generated, or the error that ends the stream, or OpenAI's word for the end."""
    content = _any_of([*route.events, *route.error_types], schema_of)
    data: Json = {"type": "string", "contentMediaType": "application/json", "contentSchema": content}
    if route.openai_errors is not False:
        data = {"anyOf": [{"const": "[DONE]"}, data]}
    return {"type": "object", "properties": {"data": data}, "required": ["data"]}


def _any_of(types: Iterable[object], schema_of: dict[str, Json]) -> Json:
    schemas = [schema_of[repr(kind)] for kind in types]
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}

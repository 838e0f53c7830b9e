import re

import pytest

from text_generation_router.app import ROUTES, build_app

REFERENCE = "#/components/schemas/"
METHODS = {"get", "post"}


@pytest.fixture
def app(serving):
    return build_app(serving)


@pytest.fixture
def document(client):
    return client.document


def nodes(value):
    yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(inner)


def operations(document):
    return [(path, method, body) for path, methods in document["paths"].items() for method, body in methods.items()]


async def test_every_route_of_the_application_is_in_the_document_and_no_other(app, document):
    mounted = {(route.method, route.resource.canonical) for route in app.router.routes() if route.method != "HEAD"}
    described = {(method.upper(), path) for path, method, _ in operations(document)}
    assert described == mounted == set(app[ROUTES])


async def test_the_document_is_built_as_the_specification_says(document):
    assert re.fullmatch(r"3\.[12]\.\d+", document["openapi"])
    assert {"title", "version"} <= set(document["info"])
    for path, method, operation in operations(document):
        assert path.startswith("/") and method in METHODS
        assert operation["summary"] and operation["tags"] and "200" in operation["responses"]
        for status, response in operation["responses"].items():
            assert re.fullmatch(r"[1-5]\d\d", status) and response["description"]
        assert ("requestBody" in operation) is (method == "post")


async def test_every_reference_leads_to_a_part_and_every_part_is_referred_to(document):
    parts = document["components"]["schemas"]
    references = {node["$ref"] for node in nodes(document) if isinstance(node, dict) and "$ref" in node}
    assert references == {REFERENCE + name for name in parts}
    assert all(re.fullmatch(r"[a-zA-Z0-9._-]+", name) for name in parts)


async def test_required_fields_are_properties(document):
    for part in document["components"]["schemas"].values():
        assert set(part.get("required", ())) <= set(part.get("properties", {}))


async def test_routes_say_whether_they_need_a_key_and_which_shape_their_errors_have(document):
    for path, method, operation in operations(document):
        assert ("security" in operation) is (method == "post")
        for status, response in operation["responses"].items():
            if status >= "400":
                schema = response["content"]["application/json"]["schema"]
                names = {node["$ref"].removeprefix(REFERENCE) for node in nodes(schema) if "$ref" in node}
                both = {"ErrorBody", "OpenAIErrorBody"}
                assert names == (both if path == "/invocations" else both - {"ErrorBody"} if "/v1/" in path else {"ErrorBody"})


async def test_every_field_of_a_request_is_described(document):
    parameters = document["components"]["schemas"]["GenerateParameters"]["properties"]
    assert {"max_new_tokens", "temperature", "best_of", "decoder_input_details", "top_n_tokens"} <= set(parameters)
    assert {"prompt", "logprobs", "suffix"} <= set(document["components"]["schemas"]["CompletionRequest"]["properties"])
    assert document["components"]["schemas"]["ChatRequest"]["required"] == ["messages"]


async def test_events_are_documented_for_what_streams(document):
    contents = [(path, body["responses"]["200"].get("content", {})) for path, _, body in operations(document)]
    streaming = {path for path, content in contents if "text/event-stream" in content}
    assert streaming == {"/generate_stream", "/", "/v1/chat/completions", "/v1/completions", "/invocations"}

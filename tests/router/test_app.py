import logging

import pytest
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

import tiny_tokenizers
from fake_engine import FakeEngine
from text_generation_router.api.serving import Serving
from text_generation_router.app import build_app
from text_generation_router.chat_template import ChatTemplate
from text_generation_router.config import RouterConfig
from text_generation_router.metrics import Metrics
from text_generation_router.tokenizer import Tokenizer
from text_generation_router.validation import Validation

KEYS = ("Secret", "second-ключ")
OPEN = ["/", "/health", "/ping", "/info", "/v1/models", "/metrics", "/docs", "/api-doc/openapi.json"]
CLOSED = ["/", "/generate", "/generate_stream", "/invocations", "/vertex", "/tokenize", "/chat_tokenize"]
CLOSED_OPENAI = ["/v1/chat/completions", "/v1/completions"]


@pytest.fixture
def tokenizer(tmp_path):
    tiny_tokenizers.save(tiny_tokenizers.byte_level(), tmp_path)
    tokenizer = Tokenizer(num_workers=1)
    tokenizer.load(tmp_path)
    yield tokenizer
    tokenizer.close()


@pytest.fixture
def engine(tokenizer):
    return FakeEngine(tokenizer, [5, 2])


def serve(engine, **options):
    config = RouterConfig(tokenizer_path="", **options)
    validation = Validation(engine.tokenizer, config)
    return TestClient(TestServer(build_app(Serving(config, engine, engine.tokenizer, ChatTemplate(), validation, Metrics()))))


@pytest.fixture
async def client(engine):
    async with serve(engine) as client:
        yield client


@pytest.fixture
async def guarded(engine):
    async with serve(engine, api_key=KEYS) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/nowhere"), ("POST", "/v1"), ("POST", "/generate/"), ("POST", "/Generate")],
)
async def test_an_unknown_route_is_a_json_404(client, method, path):
    response = await client.request(method, path)
    assert (response.status, response.content_type) == (404, "application/json")
    assert await response.json() == {"error": f"{method} {path}: Not Found", "error_type": "not_found"}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/generate", "POST"), ("POST", "/health", "GET,HEAD"), ("DELETE", "/v1/completions", "POST")],
)
async def test_another_method_is_a_json_405_that_names_the_right_one(client, method, path, allowed):
    response = await client.request(method, path)
    assert (response.status, response.headers["Allow"]) == (405, allowed)
    assert (await response.json())["error_type"] == "method_not_allowed"


async def test_an_error_that_nobody_foresaw_is_logged_and_stays_inside(client, engine, caplog):
    engine.refusal = KeyError("secret")
    response = await client.post("/generate", json={"inputs": "a"})
    assert (response.status, await response.json()) == (500, {"error": "Internal server error", "error_type": "internal"})
    assert "KeyError: 'secret'" in caplog.text and caplog.records[-1].levelno == logging.ERROR


@pytest.mark.parametrize("path", OPEN)
async def test_what_tells_of_the_server_is_open_to_all(guarded, path):
    assert (await guarded.get(path)).status == 200


@pytest.mark.parametrize("path", [*CLOSED, *CLOSED_OPENAI])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer secret"},
        {"Authorization": "Bearer Secret2"},
        {"Authorization": "Basic secret"},
        {"Authorization": "Secret"},
        {"Authorization": "Basic Secret"},
        {"x-api-key": "Secret"},
    ],
)
async def test_without_a_valid_key_everything_else_is_a_401_in_the_shape_of_the_route(guarded, engine, path, given):
    response = await guarded.post(path, json={"inputs": "a"}, headers=given)
    answer = await response.json()
    assert (response.status, response.headers["www-authenticate"]) == (401, "Bearer")
    assert answer["error_type"] == "unauthorized"
    message = "Give a valid key, as `Authorization: Bearer KEY`"
    openai = {"message": message, "type": "invalid_request_error", "code": "unauthorized", "param": None}
    assert answer["error"] == (openai if path in CLOSED_OPENAI else message)
    assert engine.requests == []


@pytest.mark.parametrize("path", ["/%67enerate", "/generate?key=Secret", "/v1/%63ompletions", "/generate#x"])
async def test_no_other_spelling_of_a_route_goes_around_the_key(guarded, path):
    url = URL(f"http://{guarded.host}:{guarded.port}{path}", encoded=True)
    async with guarded.session.post(url, json={"inputs": "a"}) as response:
        assert response.status == 401


@pytest.mark.parametrize("key", KEYS)
async def test_any_of_the_keys_will_do(guarded, key):
    response = await guarded.post("/generate", json={"inputs": "a"}, headers={"Authorization": f"Bearer {key}"})
    assert response.status == 200


async def test_without_keys_any_key_will_do(client):
    response = await client.post("/generate", json={"inputs": "a"}, headers={"Authorization": "Bearer whatever"})
    assert response.status == 200


async def test_a_missing_key_is_no_request_in_the_metrics(guarded):
    await guarded.post("/generate", json={"inputs": "a"})
    assert "tgi_request_count 0" in await (await guarded.get("/metrics")).text()

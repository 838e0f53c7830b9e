import logging

import pytest
from aiohttp.test_utils import TestClient, TestServer

import tiny_tokenizers
from fake_engine import FakeEngine
from text_generation_router.app import build_app
from text_generation_router.config import RouterConfig
from text_generation_router.tokenizer import Tokenizer


@pytest.fixture
def model_folder(tmp_path):
    return tiny_tokenizers.save(tiny_tokenizers.byte_level(), tmp_path)


@pytest.fixture
def engine(model_folder):
    return FakeEngine(Tokenizer(model_folder, num_workers=1), [5, 2])


@pytest.fixture
async def client(engine):
    async with TestClient(TestServer(build_app(RouterConfig(tokenizer_path=""), engine, engine.tokenizer))) as client:
        yield client


async def test_the_engine_runs_as_long_as_the_application(engine):
    server = TestServer(build_app(RouterConfig(tokenizer_path=""), engine, engine.tokenizer))
    await server.start_server()
    assert engine.calls == ["start"]
    await server.close()
    assert engine.calls == ["start", "stop"]


async def test_an_unknown_route_is_a_json_404(client):
    response = await client.get("/nowhere")
    assert (response.status, await response.json()) == (404, {"error": "GET /nowhere: Not Found", "error_type": "not_found"})


async def test_another_method_is_a_json_405_that_names_the_right_one(client):
    response = await client.get("/generate")
    assert (response.status, response.headers["Allow"]) == (405, "POST")
    assert (await response.json())["error_type"] == "method_not_allowed"


async def test_an_error_that_nobody_foresaw_is_logged_and_stays_inside(client, engine, caplog):
    engine.refusal = KeyError("secret")
    response = await client.post("/generate", json={"inputs": "a"})
    assert (response.status, await response.json()) == (500, {"error": "Internal server error", "error_type": "internal"})
    assert "KeyError: 'secret'" in caplog.text and caplog.records[-1].levelno == logging.ERROR


async def test_a_body_that_is_not_in_the_encoding_it_claims_is_a_json_400(client):
    response = await client.post("/generate", data=b"not gzip", headers={"content-encoding": "gzip"})
    assert response.status == 400

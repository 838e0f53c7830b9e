import asyncio
import io
import json
import logging

import pytest
from aiohttp.test_utils import TestClient, TestServer

import tiny_tokenizers
from fake_engine import FakeEngine
from text_generation_router import errors
from text_generation_router.app import build_app
from text_generation_router.config import RouterConfig
from text_generation_router.tokenizer import Tokenizer

TEXT = "that is 日本🙂"
EOS = 2
both_routes = pytest.mark.parametrize("route", ["/generate", "/generate_stream"])


@pytest.fixture
def engine(tmp_path):
    trained = tiny_tokenizers.byte_level()
    tokenizer = Tokenizer(tiny_tokenizers.save(trained, tmp_path), num_workers=1)
    return FakeEngine(tokenizer, [*trained.encode(TEXT).ids, EOS])


@pytest.fixture
async def client(engine):
    app = build_app(RouterConfig(tokenizer_path="unused"), engine, engine.tokenizer)
    async with TestClient(TestServer(app, handler_cancellation=True)) as client:
        yield client


async def post(client: TestClient, route: str = "/generate", inputs: str = "To be", **parameters):
    return await client.post(route, json={"inputs": inputs, "parameters": parameters})


async def events_of(response) -> list[dict]:
    assert response.status == 200
    blocks = (await response.text()).removesuffix("\n\n").split("\n\n")
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


async def test_generate_answers_with_the_text_alone_unless_details_are_asked(client):
    response = await post(client)
    assert response.content_type == "application/json"
    assert await response.json() == {"generated_text": TEXT}


async def test_curl_without_a_content_type_is_understood(client):
    response = await client.post("/generate", data=b'{"inputs": "hi"}', headers={"content-type": "application/x-www"})
    assert await response.json() == {"generated_text": TEXT}


async def test_details_tell_every_token_and_how_it_ended(client, engine):
    details = (await (await post(client, details=True)).json())["details"]
    assert details["finish_reason"] == "eos_token"
    assert details["generated_tokens"] == len(engine.token_ids) == len(details["tokens"])
    assert (details["seed"], details["prefill"]) == (None, [])
    assert [token["id"] for token in details["tokens"]] == engine.token_ids
    assert details["tokens"][-1] == {"id": EOS, "text": "</s>", "logprob": -0.5, "special": True}


@both_routes
async def test_the_seed_is_told_when_the_request_was_sampled(client, route):
    response = await post(client, route, details=True, do_sample=True, seed=2**64 - 1)
    body = (await events_of(response))[-1] if "stream" in route else await response.json()
    assert body["details"]["seed"] == 2**64 - 1


@both_routes
async def test_full_text_puts_the_prompt_before_the_answer(client, route):
    response = await post(client, route, return_full_text=True)
    body = (await events_of(response))[-1] if "stream" in route else await response.json()
    assert body["generated_text"] == "To be" + TEXT


async def test_headers_tell_counts_and_times(client, engine):
    headers = (await post(client, inputs="AAAA")).headers
    assert headers["x-compute-type"] == "2-cpu"
    assert headers["x-compute-characters"] == headers["x-prompt-tokens"] == "4"
    assert headers["x-generated-tokens"] == str(len(engine.token_ids))
    assert float(headers["x-compute-time"]) > 0
    for name in ("total-time", "validation-time", "queue-time", "inference-time", "time-per-token"):
        assert headers[f"x-{name}"].isdigit()


async def test_a_stream_brings_every_token_and_the_text_with_the_last_one(client, engine):
    response = await post(client, "/generate_stream")
    events = await events_of(response)
    assert response.headers["x-accel-buffering"] == "no" and response.headers["x-compute-type"] == "2-cpu"
    assert [event["index"] for event in events] == list(range(1, len(engine.token_ids) + 1))
    assert "".join(event["token"]["text"] for event in events if not event["token"]["special"]) == TEXT
    assert {event["generated_text"] for event in events[:-1]} == {None}
    assert (events[-1]["generated_text"], events[-1]["details"]) == (TEXT, None)


async def test_the_last_event_has_the_details_that_were_asked(client, engine):
    details = [event["details"] for event in await events_of(await post(client, "/generate_stream", "AAAA", details=True))]
    assert set(map(bool, details[:-1])) == {False}
    expected = {"finish_reason": "eos_token", "generated_tokens": len(engine.token_ids), "seed": None, "input_length": 4}
    assert details[-1] == expected


@both_routes
@pytest.mark.parametrize(
    ("body", "status", "error_type", "message"),
    [
        (b"{", 400, "malformed_body", "not valid JSON"),
        (b'{"inputs": NaN}', 400, "malformed_body", "not valid JSON"),
        (b"{}", 422, "validation", "missing required field `inputs`"),
        (b'{"inputs": 1}', 422, "validation", "`$.inputs`"),
        (b'{"inputs": ""}', 422, "validation", "`inputs` cannot be empty"),
        (b'{"inputs": "a", "parameters": {"temperature": -1}}', 422, "validation", "`temperature` must be strictly"),
        (b'{"inputs": "a", "parameters": {"best_of": 2}}', 422, "validation", "`best_of`"),
        (b'{"inputs": "%s"}' % (b"A" * 21), 422, "validation", "must have less than 20 tokens. Given: 21"),
        (b'{"inputs": "%s"}' % (b"A" * 2_000_000), 413, "payload_too_large", "at most 2000000 bytes"),
    ],
)
async def test_a_bad_request_is_a_status_and_a_json_error_and_queues_nothing(
    client, engine, route, body, status, error_type, message
):
    response = await client.post(route, data=io.BytesIO(body))
    answer = await response.json()
    assert (response.status, answer["error_type"]) == (status, error_type)
    assert message in answer["error"]
    assert engine.requests == []


@both_routes
async def test_an_overloaded_engine_is_a_429(client, engine, route):
    engine.refusal = errors.Overloaded()
    response = await post(client, route)
    assert (response.status, await response.json()) == (
        429,
        {"error": "Model is overloaded", "error_type": "overloaded"},
    )


@both_routes
async def test_before_the_shards_answered_a_request_is_a_503(client, engine, route):
    engine.limits, engine.status = None, "waiting for shards"
    response = await post(client, route)
    assert (response.status, (await response.json())["error_type"]) == (503, "not_ready")


async def test_a_failed_step_is_a_424(client, engine):
    engine.failure = errors.GenerationFailed("out of memory")
    response = await post(client)
    answer = {"error": "Request failed during generation: out of memory", "error_type": "generation"}
    assert (response.status, await response.json()) == (424, answer)


async def test_a_failed_step_ends_a_stream_with_an_error_event(client, engine):
    engine.failure = errors.GenerationFailed("out of memory")
    events = await events_of(await post(client, "/generate_stream"))
    assert len(events) == len(engine.token_ids)
    assert events[-1] == {"error": "Request failed during generation: out of memory", "error_type": "generation"}


@both_routes
@pytest.mark.parametrize("failure", [None, errors.GenerationFailed("x"), KeyError("x")])
async def test_a_stream_is_let_go_of_exactly_once_however_it_ended(client, engine, route, failure):
    engine.failure = failure
    await (await post(client, route)).read()
    assert [stream.num_cancels for stream in engine.streams] == [1]


@both_routes
async def test_a_client_that_goes_away_cancels_its_generation(client, engine, route):
    engine.goes_on = asyncio.Event()
    request = asyncio.create_task(post(client, route))
    while not engine.streams:
        await asyncio.sleep(0.01)
    if route == "/generate":
        request.cancel()
    else:
        (await request).close()
    await asyncio.wait_for(engine.streams[0].cancelled.wait(), 5)
    await asyncio.sleep(0.05)
    assert engine.streams[0].num_cancels == 1


async def test_one_log_line_a_request_tells_how_it_went_and_never_the_prompt(client, engine, caplog):
    caplog.set_level(logging.INFO, "text_generation_router")
    await post(client, inputs="AAAA")
    engine.failure = errors.GenerationFailed("x")
    await (await post(client, "/generate_stream", inputs="AAAA")).read()
    finished, aborted = caplog.messages
    assert f"request finished id=0 prompt_tokens=4 cached_tokens=0 generated_tokens={len(engine.token_ids)} " in finished
    assert "finish_reason=eos_token queue_seconds=0.0010 total_seconds=" in finished
    assert "finish_reason=aborted" in aborted
    assert "AAAA" not in caplog.text and TEXT not in caplog.text


async def test_health_is_an_empty_200_or_says_what_it_waits_for(client, engine):
    response = await client.get("/health")
    assert (response.status, await response.read()) == (200, b"")
    engine.status = "waiting for shards"
    response = await client.get("/health")
    answer = {"error": "unhealthy: waiting for shards", "error_type": "healthcheck"}
    assert (response.status, await response.json()) == (503, answer)


async def test_info_tells_what_is_served_and_its_limits(client, engine):
    info = await (await client.get("/info")).json()
    expected = {
        "model_id": "tiny", "model_dtype": "float32", "model_device_type": "cpu", "num_shard": 2,
        "max_concurrent_requests": 128, "max_stop_sequences": 4, "max_best_of": 1, "max_input_tokens": 20,
        "max_total_tokens": 32, "validation_workers": 2, "router": "text-generation-router",
    }  # fmt: skip
    assert expected.items() <= info.items()
    engine.model = None
    assert (await client.get("/info")).status == 503

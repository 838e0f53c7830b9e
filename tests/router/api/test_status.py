import asyncio

import pytest

from text_generation_router import errors
from text_generation_router.metrics import CONTENT_TYPE

CHAT = {"messages": [{"role": "user", "content": "A"}]}
FAILURES = ("overloaded", "validation", "generation", "incomplete", "dropped", "template")


@pytest.mark.parametrize("path", ["/", "/health", "/ping"])
async def test_health_is_an_empty_200_or_says_what_it_waits_for(client, engine, path):
    assert ((await client.get(path)).status, (await client.get(path)).text) == (200, "")
    engine.status = "downloading the model"
    answer = await client.get(path)
    error = {"error": "unhealthy: downloading the model", "error_type": "healthcheck"}
    assert (answer.status, answer.json) == (503, error)


async def test_probes_may_ask_with_head(client):
    assert (await client.send("HEAD", "/health")).status == 200


async def test_info_tells_what_is_served_and_its_limits(client):
    expected = {
        "model_id": "tiny", "model_type": "bloom", "model_dtype": "float32", "model_device_type": "cpu", "num_shard": 2,
        "max_concurrent_requests": 128, "max_stop_sequences": 4, "max_best_of": 2, "max_input_tokens": 20,
        "max_total_tokens": 32, "validation_workers": 2, "max_client_batch_size": 4, "router": "text-generation-router",
        "model_sha": None, "model_pipeline_tag": None, "sha": None, "docker_label": None, "model_quantize": None,
    }  # fmt: skip
    info = (await client.get("/info")).json
    assert info == expected | {"version": info["version"]} and info["version"]


async def test_the_one_model_is_listed_under_its_name(client, client_of):
    card = {"id": "tiny", "object": "model", "created": 0, "owned_by": "tiny"}
    assert (await client.get("/v1/models")).json == {"object": "list", "data": [card]}
    named = await client_of(model_id="org/model")
    assert (await named.get("/v1/models")).json["data"][0]["id"] == "org/model"
    assert (await named.get("/info")).json["model_id"] == "org/model"
    assert (await named.chat()).json["model"] == "org/model"


async def test_before_there_is_a_model_nothing_is_told_of_it(client, engine):
    engine.model = engine.limits = None
    engine.status = "waiting for shards"
    assert ((await client.get("/info")).status, (await client.get("/info")).json["error_type"]) == (503, "not_ready")
    models = await client.get("/v1/models")
    assert (models.status, models.json["error"]["code"]) == (503, "not_ready")
    assert (await client.get("/metrics")).status == 200


async def test_metrics_are_for_prometheus_and_gauges_are_as_of_now(client, engine):
    answer = await client.get("/metrics")
    assert answer.headers["content-type"] == CONTENT_TYPE
    assert "# TYPE tgi_request_count counter" in answer.text and engine.calls == ["update_gauges"]


async def outcomes(client):
    """How many requests were counted, how many of them succeeded, and the reasons of those that did not."""
    failures = {reason: await client.metric(f'tgi_request_failure{{err="{reason}"}}') for reason in FAILURES}
    counted, succeeded = await client.metric("tgi_request_count"), await client.metric("tgi_request_success")
    return counted, succeeded, {reason: number for reason, number in failures.items() if number}


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/generate", {"inputs": "A"}),
        ("/generate", {"inputs": "A", "parameters": {"best_of": 2, "do_sample": True}}),
        ("/generate_stream", {"inputs": "A"}),
        ("/", {"inputs": "A"}),
        ("/", {"inputs": "A", "stream": True}),
        ("/v1/chat/completions", CHAT | {"n": 3}),
        ("/v1/chat/completions", CHAT | {"n": 3, "stream": True}),
        ("/v1/completions", {"prompt": ["A", "B"], "n": 2, "best_of": 3}),
        ("/v1/completions", {"prompt": ["A", "B"], "stream": True}),
        ("/invocations", {"prompt": "A"}),
        ("/vertex", {"instances": [{"inputs": "A"}, CHAT]}),
    ],
)
async def test_one_request_counts_once_however_many_sequences_it_has(client, route, body):
    assert (await client.post(route, body)).status == 200
    assert await outcomes(client) == (1, 1, {})


@pytest.mark.parametrize(
    ("route", "body", "num_prompt_tokens", "num_sequences"),
    [
        ("/generate", {"inputs": "AAAA"}, 4, 1),
        ("/generate_stream", {"inputs": "AAAA"}, 4, 1),
        ("/v1/completions", {"prompt": ["AAAA", "BB"]}, 6, 2),
    ],
)
async def test_durations_and_tokens_are_observed_once(client, engine, route, body, num_prompt_tokens, num_sequences):
    await client.post(route, body)
    for name in ("duration", "validation_duration", "queue_duration", "inference_duration", "mean_time_per_token_duration"):
        assert await client.metric(f"tgi_request_{name}_count") == 1
    assert await client.metric("tgi_request_input_length_sum") == num_prompt_tokens
    assert await client.metric("tgi_request_generated_tokens_sum") == num_sequences * len(engine.token_ids)


@pytest.mark.parametrize("path", ["/health", "/info", "/v1/models", "/metrics", "/docs"])
async def test_questions_about_the_server_are_no_requests(client, path):
    await client.get(path)
    await client.post("/tokenize", inputs="A")
    assert await outcomes(client) == (0, 0, {})


@pytest.mark.parametrize(
    ("route", "body", "refusal", "failure", "label"),
    [
        ("/generate", {"inputs": ""}, None, None, "validation"),
        ("/generate", {}, None, None, "validation"),
        ("/generate_stream", {"inputs": "A", "parameters": {"top_k": 0}}, None, None, "validation"),
        ("/v1/completions", {"prompt": "A", "suffix": "B"}, None, None, "validation"),
        ("/v1/chat/completions", CHAT | {"tools": [{}]}, None, None, "validation"),
        ("/v1/chat/completions", {"messages": [{"role": "refused", "content": "A"}]}, None, None, "template"),
        ("/generate", {"inputs": "A"}, errors.Overloaded(), None, "overloaded"),
        ("/generate", {"inputs": "A"}, errors.NotReady("x"), None, "incomplete"),
        ("/generate", {"inputs": "A"}, KeyError("x"), None, "incomplete"),
        ("/generate", {"inputs": "A"}, None, errors.GenerationFailed("x"), "generation"),
        ("/generate_stream", {"inputs": "A"}, None, errors.GenerationFailed("x"), "generation"),
        ("/v1/chat/completions", CHAT | {"n": 3, "stream": True}, None, errors.GenerationFailed("x"), "generation"),
        ("/vertex", {"instances": [CHAT, CHAT]}, None, errors.GenerationFailed("x"), "generation"),
    ],
)
async def test_a_request_that_fails_counts_once_under_its_reason(client, engine, route, body, refusal, failure, label):
    engine.refusal, engine.failure = refusal, failure
    await client.post(route, body)
    assert await outcomes(client) == (1, 0, {label: 1})


@pytest.mark.parametrize("route", ["/generate", "/generate_stream"])
async def test_a_client_that_goes_away_counts_as_dropped(client, engine, route):
    engine.goes_on = asyncio.Event()
    request = asyncio.create_task(client.http.post(route, json={"inputs": "A"}))
    while not engine.streams:
        await asyncio.sleep(0.01)
    if route == "/generate":
        request.cancel()
    else:
        (await request).close()
    await asyncio.wait_for(engine.streams[0].cancelled.wait(), 5)
    await asyncio.sleep(0.02)
    assert await outcomes(client) == (1, 0, {"dropped": 1})

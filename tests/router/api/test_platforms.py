import pytest

from text_generation_router import errors

MESSAGES = [{"role": "user", "content": "A"}]


async def test_sagemakers_route_answers_by_what_the_body_holds(client, engine):
    assert (await client.post("/invocations", inputs="A")).json == [{"generated_text": "A" + engine.text}]
    assert (await client.post("/invocations", messages=MESSAGES)).json["object"] == "chat.completion"
    assert (await client.post("/invocations", prompt="A")).json["object"] == "text_completion"


async def test_sagemakers_route_streams_each_of_them(client, engine):
    assert (await client.post("/invocations", inputs="A", stream=True)).events[0]["index"] == 1
    chat = await client.post("/invocations", messages=MESSAGES, stream=True)
    assert chat.events[0]["object"] == "chat.completion.chunk" and chat.data[-1] == "[DONE]"
    completion = await client.post("/invocations", prompt="A", stream=True)
    assert completion.events[0]["object"] == "text_completion" and completion.data[-1] == "[DONE]"


@pytest.mark.parametrize(
    ("body", "has_openai_shape"),
    [
        ({"inputs": "A"}, False),
        ({"messages": MESSAGES}, True),
        ({"prompt": "A"}, True),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_have_the_shape_of_the_route_that_is_meant(client, engine, body, has_openai_shape, stream):
    engine.failure = errors.GenerationFailed("x")
    answer = await client.post("/invocations", body | {"stream": stream})
    error = answer.events[-1] if stream else answer.json
    assert error["error_type"] == "generation" and isinstance(error["error"], dict) is has_openai_shape


@pytest.mark.parametrize(
    ("body", "has_openai_shape", "message"),
    [
        ({}, False, "one of `inputs`, `messages` and `prompt` must be set"),
        ({"parameters": {}}, False, "one of `inputs`, `messages` and `prompt` must be set"),
        ({"inputs": 1}, False, "Expected `str`, got `int` - at `$.inputs`"),
        ({"messages": 1}, True, "Expected `array`, got `int` - at `$.messages`"),
        ({"prompt": {}}, True, "Expected `str | array`, got `object` - at `$.prompt`"),
    ],
)
async def test_a_body_of_no_kind_is_refused(client, engine, body, has_openai_shape, message):
    answer = await client.post("/invocations", body)
    error = answer.json["error"]
    assert (answer.status, isinstance(error, dict)) == (422, has_openai_shape)
    assert (error["message"] if has_openai_shape else error) == f"Input validation error: {message}"


async def test_vertex_answers_each_instance_in_order(client, engine):
    engine.say("AAAA", "BBB", "CC")
    instances = [{"inputs": "X"}, {"messages": MESSAGES}, {"inputs": "Y", "parameters": {"max_new_tokens": 1}}]
    assert (await client.post("/vertex", instances=instances)).json == {"predictions": ["AAAA", "BBB", "C"]}


async def test_vertex_honours_what_an_instance_asks_for(client, engine):
    parameters = {"temperature": 0.5, "seed": 7, "stop": ["X"], "truncate": 2}
    chat = {"messages": MESSAGES, "temperature": 0, "max_tokens": 3}
    await client.post("/vertex", instances=[{"inputs": "AAAA", "parameters": parameters}, chat, {"inputs": "A"}])
    first, second, third = engine.requests
    assert (first.sampling.temperature, first.sampling.seed, first.stop) == (0.5, 7, ("X",))
    assert len(first.prompt_token_ids) == 2
    assert (second.sampling.do_sample, second.max_new_tokens) == (False, 3)
    assert not third.sampling.do_sample


async def test_vertex_shows_the_best_of_several_answers(client, engine):
    engine.say("A", "B")
    engine.logprobs = {1: -0.1}
    instances = [{"inputs": "X", "parameters": {"best_of": 2, "do_sample": True}}]
    assert (await client.post("/vertex", instances=instances)).json == {"predictions": ["B"]}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"instances": []}, "`instances` cannot be empty"),
        ({}, "Object missing required field `instances`"),
        ({"instances": [1]}, "Expected `object`, got `int`"),
        ({"instances": [{}]}, "Object missing required field `inputs`"),
        ({"instances": [{"inputs": "A"}, {"inputs": ""}]}, "`inputs` cannot be empty"),
    ],
)
async def test_vertex_refuses_all_instances_if_it_must_refuse_one(client, engine, body, message):
    answer = await client.post("/vertex", body)
    assert (answer.status, answer.json["error"]) == (422, f"Input validation error: {message}")
    assert all(stream.cancelled.is_set() for stream in engine.streams)


async def test_vertex_fails_as_a_whole(client, engine):
    engine.failure = errors.GenerationFailed("x")
    answer = await client.post("/vertex", instances=[{"inputs": "A"}, {"messages": MESSAGES}])
    error = {"error": "Request failed during generation: x", "error_type": "generation"}
    assert (answer.status, answer.json) == (424, error)

import dataclasses

import pytest

from text_generation_router import errors

EOS_TOKEN = {"id": 2, "text": "</s>", "logprob": -0.5, "special": True}
WHOLE = ["/generate", "/", "/invocations"]
STREAMED = ["/generate_stream", "/", "/invocations"]


async def whole(client, route, inputs="AAAA", **parameters):
    answer = await client.generate(route, inputs, **parameters)
    assert answer.status == 200, answer.text
    if route == "/generate":
        return answer.json
    (response,) = answer.json
    return response


async def streamed(client, route, inputs="AAAA", **parameters):
    answer = await client.post(route, inputs=inputs, parameters=parameters, stream=True)
    return answer.events


async def last(client, route, **parameters):
    """What ends the answer, whichever way it came."""
    if route == "/generate_stream":
        return (await streamed(client, route, **parameters))[-1]
    return await whole(client, route, **parameters)


async def test_the_answer_is_the_text_alone_unless_details_are_asked(client, engine):
    assert (await client.generate()).json == {"generated_text": engine.text}


@pytest.mark.parametrize("parameters", [{}, {"parameters": None}, {"parameters": {}}])
async def test_without_parameters_a_request_is_greedy_and_may_fill_what_is_left(client, engine, parameters):
    answer = await client.post("/generate", inputs="AAAA", **parameters)
    assert answer.json == {"generated_text": engine.text}
    (request,) = engine.requests
    assert (request.sampling.do_sample, request.max_new_tokens, request.stop) == (False, 28, ())


@pytest.mark.parametrize("route", WHOLE)
async def test_nulls_and_unknown_fields_are_as_if_not_there(client, engine, route):
    nullable = ("best_of", "temperature", "repetition_penalty", "frequency_penalty", "top_k", "top_p", "typical_p")
    nullable += ("max_new_tokens", "return_full_text", "truncate", "seed", "top_n_tokens", "grammar", "adapter_id")
    parameters = dict.fromkeys(nullable) | {"num_beams": 4, "model_kwargs": {"a": [1]}}
    answer = await client.post(route, inputs="AAAA", parameters=parameters, options={"wait_for_model": True})
    assert answer.status == 200
    assert engine.requests[0].max_new_tokens == 28 and not engine.requests[0].sampling.do_sample


async def test_a_body_without_a_content_type_is_understood(client, engine):
    answer = await client.send("POST", "/generate", data=b'{"inputs": "A"}', headers={"content-type": "text/plain"})
    assert answer.json == {"generated_text": engine.text}


async def test_on_the_root_the_answer_is_a_list_with_the_prompt_before_the_text(client, engine):
    assert (await client.generate("/")).json == [{"generated_text": "AAAA" + engine.text}]


@pytest.mark.parametrize(
    ("route", "parameters", "has_prompt"),
    [
        ("/generate", {}, False),
        ("/generate", {"return_full_text": None}, False),
        ("/generate", {"return_full_text": True}, True),
        ("/generate_stream", {}, False),
        ("/generate_stream", {"return_full_text": True}, True),
        ("/", {}, True),
        ("/", {"return_full_text": None}, True),
        ("/", {"return_full_text": False}, False),
        ("/invocations", {}, True),
        ("/invocations", {"return_full_text": False}, False),
    ],
)
async def test_full_text_is_the_default_where_the_hub_had_it(client, engine, route, parameters, has_prompt):
    assert (await last(client, route, **parameters))["generated_text"] == "AAAA" * has_prompt + engine.text


@pytest.mark.parametrize(("full", "has_prompt"), [(None, True), (False, False)])
async def test_the_stream_of_the_root_ends_with_the_full_text_too(client, engine, full, has_prompt):
    events = await streamed(client, "/", return_full_text=full)
    assert events[-1]["generated_text"] == "AAAA" * has_prompt + engine.text
    assert "".join(event["token"]["text"] for event in events[:-1]) == engine.text


@pytest.mark.parametrize("route", WHOLE)
async def test_details_tell_every_token_and_how_it_ended(client, engine, route):
    details = (await whole(client, route, details=True))["details"]
    assert set(details) == {"finish_reason", "generated_tokens", "seed", "prefill", "tokens"}
    assert (details["finish_reason"], details["seed"], details["prefill"]) == ("eos_token", None, [])
    assert details["generated_tokens"] == len(engine.token_ids)
    assert [token["id"] for token in details["tokens"]] == engine.token_ids
    assert "".join(token["text"] for token in details["tokens"][:-1]) == engine.text
    assert details["tokens"][-1] == EOS_TOKEN


@pytest.mark.parametrize(
    ("parameters", "reason", "text"),
    [
        ({}, "eos_token", "ABCD"),
        ({"max_new_tokens": 2}, "length", "AB"),
        ({"stop": ["BC"]}, "stop_sequence", "ABC"),
        ({"stop": ["D", "C", "ZZ"]}, "stop_sequence", "ABC"),
        ({"stop": ["Z"]}, "eos_token", "ABCD"),
    ],
)
async def test_every_end_has_its_reason_and_a_stop_sequence_stays_in_the_text(client, engine, parameters, reason, text):
    engine.say("ABCD")
    for route in ("/generate", "/generate_stream"):
        answer = await last(client, route, details=True, **parameters)
        assert (answer["details"]["finish_reason"], answer["generated_text"]) == (reason, text)


@pytest.mark.parametrize("asked", [{}, {"details": False}, {"details": True}])
async def test_decoder_input_details_bring_details_and_rate_the_prompt(client, engine, asked):
    details = (await whole(client, "/generate", "AABC", decoder_input_details=True, **asked))["details"]
    assert [token["text"] for token in details["prefill"]] == ["A", "A", "B", "C"]
    assert [token["logprob"] for token in details["prefill"]] == [None, -0.75, -0.75, -0.75]
    assert details["prefill"][0] == {"id": engine.requests[0].prompt_token_ids[0], "text": "A", "logprob": None}


async def test_a_prompt_that_is_only_read_is_neither_rated_nor_a_part_of_the_answer(client, engine):
    engine.limits = dataclasses.replace(engine.limits, decoder_start_token_id=engine.token_ids[0])
    answer = await whole(client, "/generate", "AABC", decoder_input_details=True)
    assert [(token["id"], token["logprob"]) for token in answer["details"]["prefill"]] == [(engine.token_ids[0], None)]
    assert (await whole(client, "/", "AABC"))["generated_text"] == answer["generated_text"]
    assert (await whole(client, "/", "AABC", return_full_text=True))["generated_text"] == "AABC" + answer["generated_text"]


@pytest.mark.parametrize("route", WHOLE)
async def test_top_tokens_are_there_for_every_token_if_they_are_asked_for(client, engine, route):
    details = (await whole(client, route, details=True, top_n_tokens=3))["details"]
    assert [len(alternatives) for alternatives in details["top_tokens"]] == [3] * len(engine.token_ids)
    first, second, _ = details["top_tokens"][0]
    assert first == details["tokens"][0]
    assert (second["id"], second["logprob"]) == (engine.token_ids[0] + 1, -1.5)
    assert details["top_tokens"][-1][0] == EOS_TOKEN


@pytest.mark.parametrize("asked", [{}, {"top_n_tokens": 0}, {"top_n_tokens": None}])
async def test_top_tokens_are_left_out_if_they_are_not_asked_for(client, asked):
    assert "top_tokens" not in (await whole(client, "/generate", details=True, **asked))["details"]
    assert all("top_tokens" not in event for event in await streamed(client, "/generate_stream", **asked))


@pytest.mark.parametrize("route", STREAMED)
async def test_top_tokens_come_with_each_event(client, engine, route):
    events = await streamed(client, route, top_n_tokens=2)
    assert [event["top_tokens"][0]["id"] for event in events] == engine.token_ids
    assert {len(event["top_tokens"]) for event in events} == {2}


async def test_the_best_of_several_is_the_likeliest_on_average_and_the_rest_are_details(client_of, engine):
    client = await client_of(max_best_of=3)
    engine.say("A", "BB", "CCC")
    engine.logprobs = {0: -0.9, 1: -0.1, 2: -0.4}  # the longest sum is not the lowest mean
    answer = await whole(client, "/generate", best_of=3, do_sample=True, details=True, top_n_tokens=1, return_full_text=True)
    others = answer["details"]["best_of_sequences"]
    assert answer["generated_text"] == "AAAABB" and answer["details"]["generated_tokens"] == 3
    assert [other["generated_text"] for other in others] == ["AAAACCC", "AAAAA"]
    assert [other["generated_tokens"] for other in others] == [4, 2]
    assert [len(other["top_tokens"]) for other in others] == [4, 2]
    assert set(others[0]) == {
        *("generated_text", "finish_reason", "generated_tokens", "seed", "prefill", "tokens", "top_tokens"),
    }


async def test_each_of_several_answers_has_a_seed_of_its_own(client, engine):
    details = (await whole(client, "/generate", best_of=2, do_sample=True, details=True))["details"]
    seeds = [details["seed"], details["best_of_sequences"][0]["seed"]]
    assert len(set(seeds)) == 2
    assert sorted(seeds) == sorted(request.sampling.seed for request in engine.requests)


@pytest.mark.parametrize("best_of", [0, 1])
async def test_the_best_of_one_is_that_one(client, engine, best_of):
    details = (await whole(client, "/generate", best_of=best_of, details=True))["details"]
    assert "best_of_sequences" not in details and len(engine.requests) == 1


async def test_without_details_the_best_answer_is_all_there_is(client, engine):
    engine.say("A", "B")
    engine.logprobs = {1: -0.1}
    assert await whole(client, "/generate", best_of=2, do_sample=True) == {"generated_text": "B"}


@pytest.mark.parametrize("route", ["/generate", "/generate_stream"])
@pytest.mark.parametrize(
    ("parameters", "shown"),
    [
        ({"do_sample": True, "seed": 2**64 - 1}, 2**64 - 1),
        ({"temperature": 0.5, "seed": 0}, 0),
        ({"top_k": 5, "seed": 7}, 7),
        ({"seed": 7}, None),
        ({"temperature": 1.0, "seed": 7}, None),
    ],
)
async def test_the_seed_is_shown_when_something_was_drawn(client, route, parameters, shown):
    assert (await last(client, route, details=True, **parameters))["details"]["seed"] == shown


@pytest.mark.parametrize("route", ["/generate", "/generate_stream"])
async def test_a_seed_that_nobody_gave_is_shown_too(client, engine, route):
    details = (await last(client, route, details=True, do_sample=True))["details"]
    assert details["seed"] == engine.requests[0].sampling.seed < 2**63


@pytest.mark.parametrize("route", ["/generate", "/generate_stream"])
async def test_truncation_keeps_the_end_of_the_prompt(client, engine, route):
    await client.generate(route, "A" * 50 + "BCD", truncate=3)
    assert engine.requests[0].prompt_token_ids == engine.tokenizer._encode("BCD", False)


async def test_headers_tell_counts_and_times(client, engine):
    headers = (await client.generate(inputs="日本AA")).headers
    assert headers["x-compute-type"] == "2-cpu"
    assert headers["x-compute-characters"] == "4"
    assert headers["x-prompt-tokens"] == str(len(engine.requests[0].prompt_token_ids))
    assert headers["x-generated-tokens"] == str(len(engine.token_ids))
    assert 0 < float(headers["x-compute-time"]) < 60
    for name in ("total-time", "validation-time", "queue-time", "inference-time", "time-per-token"):
        assert headers[f"x-{name}"].isdigit()


async def test_all_of_several_answers_are_in_the_count(client, engine):
    headers = (await client.generate(best_of=2, do_sample=True)).headers
    assert headers["x-generated-tokens"] == str(2 * len(engine.token_ids))


@pytest.mark.parametrize("route", ["/generate", "/generate_stream", "/", "/v1/chat/completions", "/v1/completions"])
async def test_the_compute_type_is_what_a_flag_says(client_of, route):
    client = await client_of(compute_type="2-h200")
    body = {"inputs": "A", "prompt": "A", "messages": [{"role": "user", "content": "A"}]}
    assert (await client.post(route, body)).headers["x-compute-type"] == "2-h200"


@pytest.mark.parametrize("route", STREAMED)
async def test_a_stream_brings_every_token_and_the_text_with_the_last_one(client, engine, route):
    answer = await client.post(route, inputs="AAAA", parameters={"return_full_text": False}, stream=True)
    assert "[DONE]" not in answer.data
    assert answer.headers["x-accel-buffering"] == "no" and answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-compute-characters"] == "4" and "x-compute-time" not in answer.headers
    events = answer.events
    assert [event["index"] for event in events] == list(range(1, len(engine.token_ids) + 1))
    assert [event["token"]["id"] for event in events] == engine.token_ids
    assert "".join(event["token"]["text"] for event in events if not event["token"]["special"]) == engine.text
    assert {event["generated_text"] for event in events[:-1]} == {None}
    assert (events[-1]["generated_text"], events[-1]["details"]) == (engine.text, None)


async def test_the_last_event_has_the_details_that_were_asked(client, engine):
    details = [event["details"] for event in await streamed(client, "/generate_stream", details=True)]
    assert set(map(bool, details[:-1])) == {False}
    expected = {"finish_reason": "eos_token", "generated_tokens": len(engine.token_ids), "seed": None, "input_length": 4}
    assert details[-1] == expected


async def test_what_asks_generate_for_a_stream_is_answered_whole(client, engine):
    assert (await client.post("/generate", inputs="A", stream=True)).json == {"generated_text": engine.text}


@pytest.mark.parametrize("route", ["/generate", "/generate_stream", "/"])
@pytest.mark.parametrize(
    ("failure", "status", "answer"),
    [
        (errors.Overloaded(), 429, {"error": "Model is overloaded", "error_type": "overloaded"}),
        (
            errors.NotReady("waiting for shards"),
            503,
            {"error": "The model cannot answer yet: waiting for shards", "error_type": "not_ready"},
        ),
        (KeyError("secret"), 500, {"error": "Internal server error", "error_type": "internal"}),
    ],
)
async def test_what_the_engine_does_not_take_is_a_status(client, engine, route, failure, status, answer):
    engine.refusal = failure
    refused = await client.post(route, inputs="A", stream=True)
    assert (refused.status, refused.json) == (status, answer)


@pytest.mark.parametrize("route", WHOLE)
async def test_a_failed_step_is_a_424(client, engine, route):
    engine.failure = errors.GenerationFailed("Server error: out of memory")
    answer = await client.generate(route)
    message = "Request failed during generation: Server error: out of memory"
    assert (answer.status, answer.json) == (424, {"error": message, "error_type": "generation"})


@pytest.mark.parametrize("route", STREAMED)
async def test_a_failed_step_is_the_last_event_of_a_stream(client, engine, route):
    engine.failure = errors.GenerationFailed("out of memory")
    answer = await client.post(route, inputs="A", stream=True)
    assert len(answer.data) == len(answer.events) == len(engine.token_ids)
    error = {"error": "Request failed during generation: out of memory", "error_type": "generation"}
    assert answer.events[-1] == error and "token" in answer.events[-2]


@pytest.mark.parametrize("route", ["/generate", "/generate_stream"])
@pytest.mark.parametrize(
    ("body", "status", "error_type", "message"),
    [
        (b"", 400, "malformed_body", "The body is not valid JSON: "),
        (b"{", 400, "malformed_body", "The body is not valid JSON: "),
        (b'{"inputs": NaN}', 400, "malformed_body", "The body is not valid JSON: "),
        (b"{}", 422, "validation", "Input validation error: Object missing required field `inputs`"),
        (b'{"inputs": 1}', 422, "validation", "`$.inputs`"),
        (b'{"inputs": "A", "parameters": {"top_k": "x"}}', 422, "validation", "`$.parameters.top_k`"),
    ],
)
async def test_a_body_that_cannot_be_read_is_told_where(client, engine, route, body, status, error_type, message):
    answer = await client.send("POST", route, data=body)
    assert (answer.status, answer.json["error_type"]) == (status, error_type)
    assert message in answer.json["error"]
    assert engine.requests == []

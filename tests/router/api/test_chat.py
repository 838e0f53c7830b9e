import time

import pytest

from text_generation_router import errors

STREAM_BOTH_WAYS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


def text_of(answer, index=0):
    """One choice's text, whichever way it came."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return answer.json["choices"][index]["message"]["content"]
    return "".join(choice["delta"].get("content", "") for choice in answer.choices if choice["index"] == index)


def finish_of(answer, index=0):
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return answer.json["choices"][index]["finish_reason"]
    (reason,) = {choice["finish_reason"] for choice in answer.choices if choice["index"] == index} - {None}
    return reason


def prompt_of(engine, number=0):
    return engine.tokenizer.decode(engine.requests[number].prompt_token_ids)


async def test_a_completion_has_what_openai_says_it_has(client, engine):
    answer = await client.chat(max_tokens=20)
    completion = answer.json
    assert completion["id"].startswith("chatcmpl-") and len(completion["id"]) > 20
    assert (completion["object"], completion["model"]) == ("chat.completion", "tiny")
    assert abs(completion["created"] - time.time()) < 60 and completion["system_fingerprint"]
    message = {"role": "assistant", "content": engine.text}
    assert completion["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
    num_tokens = len(engine.token_ids)
    assert completion["usage"] == {"prompt_tokens": 9, "completion_tokens": num_tokens, "total_tokens": 9 + num_tokens}
    assert answer.headers["x-prompt-tokens"] == "9" and float(answer.headers["x-compute-time"]) > 0


async def test_a_stream_has_one_id_a_role_first_and_done_last(client, engine):
    answer = await client.chat(stream=True)
    chunks = answer.events
    assert answer.data[-1] == "[DONE]" and answer.data.count("[DONE]") == 1
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["id"].startswith("chatcmpl-") and chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all("role" not in choice["delta"] for choice in answer.choices[1:])
    assert [choice["finish_reason"] for choice in answer.choices] == [None] * (len(chunks) - 1) + ["stop"]
    assert text_of(answer) == engine.text and answer.choices[-1]["delta"] == {}
    assert {chunk["usage"] for chunk in chunks} == {None}


async def test_each_answer_has_an_id_of_its_own(client):
    assert len({(await client.chat()).json["id"] for _ in range(3)}) == 3


async def test_usage_comes_in_a_last_chunk_without_choices_if_it_is_asked_for(client, engine):
    answer = await client.chat(stream=True, stream_options={"include_usage": True})
    *others, last = answer.events
    num_tokens = len(engine.token_ids)
    assert last["choices"] == [] and {chunk["usage"] for chunk in others} == {None}
    assert last["usage"] == {"prompt_tokens": 9, "completion_tokens": num_tokens, "total_tokens": 9 + num_tokens}
    assert answer.data[-1] == "[DONE]"


@STREAM_BOTH_WAYS
@pytest.mark.parametrize(
    ("fields", "reason", "text"),
    [
        ({}, "stop", "ABCD"),
        ({"max_tokens": 2}, "length", "AB"),
        ({"max_completion_tokens": 2}, "length", "AB"),
        ({"max_tokens": 1, "max_completion_tokens": 3}, "length", "ABC"),
        ({"max_tokens": 3, "max_completion_tokens": None}, "length", "ABC"),
        ({"stop": "C"}, "stop", "AB"),
        ({"stop": "BC"}, "stop", "A"),
        ({"stop": ["ZZ", "BCD"]}, "stop", "A"),
        ({"stop": "ABCD"}, "stop", ""),
        ({"stop": "BX"}, "stop", "ABCD"),
        ({"stop": "DX"}, "stop", "ABCD"),
        ({"stop": "BX", "max_tokens": 2}, "length", "AB"),
        ({"stop": []}, "stop", "ABCD"),
        ({"stop": None}, "stop", "ABCD"),
    ],
)
async def test_every_end_is_stop_or_length_and_a_stop_sequence_is_cut_off(client, engine, stream, fields, reason, text):
    engine.say("ABCD")
    answer = await client.chat(stream=stream, **fields)
    assert (finish_of(answer), text_of(answer)) == (reason, text)


async def test_a_character_of_several_tokens_comes_once_and_whole(client, engine):
    engine.say("é日x本🙂🦜")
    answer = await client.chat(stream=True)
    assert text_of(answer) == "é日x本🙂🦜"
    assert all("\ufffd" not in choice["delta"].get("content", "") for choice in answer.choices)


@STREAM_BOTH_WAYS
async def test_several_choices_have_their_index_seeds_and_one_prompt_in_the_usage(client, engine, stream):
    engine.say("A", "BB", "CCC")
    answer = await client.chat(n=3, seed=5, stream=stream, stream_options={"include_usage": True})
    assert [text_of(answer, index) for index in range(3)] == ["A", "BB", "CCC"]
    assert [finish_of(answer, index) for index in range(3)] == ["stop"] * 3
    assert [request.sampling.seed for request in engine.requests] == [5, 6, 7]
    usage = (answer.events[-1] if stream else answer.json)["usage"]
    assert usage == {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
    if stream:
        roles = [choice["index"] for choice in answer.choices if "role" in choice["delta"]]
        assert roles == [0, 1, 2]


def logprob_entry(token, logprob=-0.5, top=()):
    return {"token": token, "logprob": logprob, "bytes": list(token.encode()), "top_logprobs": list(top)}


def logprobs_of(answer):
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return answer.json["choices"][0]["logprobs"]["content"]
    return [entry for choice in answer.choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]


@STREAM_BOTH_WAYS
async def test_logprobs_name_every_token_of_the_text_with_its_bytes(client, engine, stream):
    engine.say("AB")
    answer = await client.chat(logprobs=True, stream=stream)
    assert logprobs_of(answer) == [logprob_entry("A"), logprob_entry("B")]


@STREAM_BOTH_WAYS
async def test_alternatives_come_with_logprobs(client, engine, stream):
    engine.say("A")
    (entry,) = logprobs_of(await client.chat(logprobs=True, top_logprobs=20, stream=stream))
    assert len(entry["top_logprobs"]) == 20
    assert entry["top_logprobs"][0] == {"token": "A", "logprob": -0.5, "bytes": [65]}


@STREAM_BOTH_WAYS
async def test_parts_of_a_character_are_told_by_their_bytes(client, engine, stream):
    engine.say("é日")
    entries = logprobs_of(await client.chat(logprobs=True, stream=stream))
    assert bytes(byte for entry in entries for byte in entry["bytes"]) == "é日".encode()


async def test_tokens_of_a_stop_sequence_that_was_cut_off_have_no_logprobs(client, engine):
    engine.say("ABCD")
    assert logprobs_of(await client.chat(logprobs=True, stop="CD")) == [logprob_entry("A"), logprob_entry("B")]


@pytest.mark.parametrize("fields", [{}, {"logprobs": False}, {"logprobs": None}, {"top_logprobs": 2}])
async def test_logprobs_are_null_if_they_are_not_asked_for(client, fields):
    assert (await client.chat(**fields)).json["choices"][0]["logprobs"] is None
    assert {choice["logprobs"] for choice in (await client.chat(stream=True, **fields)).choices} == {None}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"do_sample": True, "temperature": 1.0}),
        ({"temperature": None}, {"do_sample": True, "temperature": 1.0}),
        ({"temperature": 0}, {"do_sample": False}),
        ({"temperature": 0, "top_p": 0.5}, {"do_sample": False, "top_p": None}),
        ({"temperature": 1}, {"do_sample": True}),
        ({"temperature": 0.5}, {"do_sample": True, "temperature": 0.5}),
        ({"top_p": 1}, {"top_p": None}),
        ({"top_p": 0.25}, {"top_p": 0.25}),
        ({"seed": 7}, {"seed": 7}),
        ({"seed": -1}, {"seed": 2**64 - 1}),
        ({"frequency_penalty": 0.5}, {"frequency_penalty": 0.5}),
        ({"presence_penalty": -1.5}, {"presence_penalty": -1.5, "repetition_penalty": 1.0}),
        ({"logit_bias": {"5": -100, "339": 2.5}}, {"logit_bias": {5: -100, 339: 2.5}}),
        ({"logit_bias": {}}, {"logit_bias": {}}),
        ({"logit_bias": [1.0, 2.0]}, {"logit_bias": {}}),
        ({"top_k": 5, "user": "x", "service_tier": "auto"}, {"top_k": None}),
    ],
)
async def test_openais_parameters_mean_what_they_mean_there(client, engine, fields, expected):
    assert (await client.chat(**fields)).status == 200
    sampling = engine.requests[0].sampling
    assert {name: getattr(sampling, name) for name in expected} == expected


@pytest.mark.parametrize("model", ["tgi", "dummy", "gpt-4o", None])
async def test_any_model_name_is_answered_by_the_one_that_is_there(client, model):
    answer = await client.chat(model=model)
    assert (answer.status, answer.json["model"]) == (200, "tiny")


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ([{"role": "user", "content": "Hi"}], "u:Hi|a:"),
        ([{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}], "s:S|u:Hi|a:"),
        ([{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}], "u:Hi|a:"),
        ([{"role": "user", "content": ""}], "u:|a:"),
        ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}], "u:Hi|a:Yo"),
        ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo "}], "u:Hi|a:Yo "),
        ([{"role": "assistant", "content": None, "tool_calls": [{"id": "0"}]}, {"role": "user", "content": "A"}], "a:|u:A|a:"),
        ([{"role": "tool", "content": "4", "tool_call_id": "0"}], "t:4|a:"),
        ([{"role": "user", "content": "</s>"}], "u:</s>|a:"),
    ],
)
async def test_a_conversation_becomes_the_prompt_that_the_template_makes_of_it(client, engine, messages, prompt):
    answer = await client.post("/v1/chat/completions", messages=messages)
    assert answer.status == 200, answer.text
    assert prompt_of(engine) == prompt


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
        {"tools": None, "tool_choice": "auto"},
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "text"}, "tools": []},
        {"response_format": None},
        {"tool_prompt": "Call one:"},
    ],
)
async def test_what_asks_for_no_tool_and_no_grammar_is_a_plain_chat(client, engine, fields):
    assert text_of(await client.chat(**fields)) == engine.text


@pytest.mark.parametrize(
    ("failure", "status", "message", "kind", "code"),
    [
        (errors.Overloaded(), 429, "Model is overloaded", "overloaded", "overloaded"),
        (errors.NotReady("x"), 503, "The model cannot answer yet: x", "not_ready", "not_ready"),
        (KeyError("secret"), 500, "Internal server error", "internal", "internal"),
    ],
)
async def test_errors_have_openais_shape_and_the_originals_type_beside_it(
    client, engine, failure, status, message, kind, code
):
    engine.refusal = failure
    answer = await client.chat(stream=True)
    error = {"message": message, "type": kind, "code": code, "param": None}
    assert (answer.status, answer.json) == (status, {"error": error, "error_type": code})


async def test_a_failed_step_is_a_424(client, engine):
    engine.failure = errors.GenerationFailed("x")
    answer = await client.chat()
    assert (answer.status, answer.json["error"]["type"]) == (424, "generation")


@pytest.mark.parametrize("n", [1, 2])
async def test_a_stream_that_breaks_off_has_one_error_and_no_end(client, engine, n):
    engine.failure = errors.GenerationFailed("out of memory")
    answer = await client.chat(stream=True, n=n, stream_options={"include_usage": True})
    *chunks, last = answer.events
    message = "Request failed during generation: out of memory"
    error = {"message": message, "type": "generation", "code": "generation", "param": None}
    assert last == {"error": error, "error_type": "generation"}
    assert "[DONE]" not in answer.data and all("error" not in chunk and chunk["usage"] is None for chunk in chunks)
    assert {choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]} == {None}

import time

import pytest

from text_generation_router import errors

STREAM_BOTH_WAYS = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


def is_stream(answer):
    return answer.headers["content-type"].startswith("text/event-stream")


def choices_of(answer):
    """The choices in the order of their index, with those of a stream put together."""
    if not is_stream(answer):
        choices = answer.json["choices"]
        assert [choice["index"] for choice in choices] == list(range(len(choices)))
        return choices
    whole = {}
    for choice in answer.choices:
        so_far = whole.setdefault(choice["index"], {"text": "", "logprobs": None, "finish_reason": None})
        assert so_far["finish_reason"] is None, "something comes after the end"
        so_far["text"] += choice["text"]
        so_far["finish_reason"] = choice["finish_reason"]
        for name, values in (choice["logprobs"] or {}).items():
            so_far["logprobs"] = so_far["logprobs"] or {}
            so_far["logprobs"][name] = so_far["logprobs"].get(name, []) + values
    return [{"index": index, **whole[index]} for index in sorted(whole)]


def texts_of(answer):
    return [choice["text"] for choice in choices_of(answer)]


def ids(engine, text):
    return engine.tokenizer._encode(text, False)


async def test_a_completion_has_what_openai_says_it_has(client, engine):
    answer = await client.complete()
    completion = answer.json
    assert completion["id"].startswith("cmpl-") and len(completion["id"]) > 20
    assert (completion["object"], completion["model"]) == ("text_completion", "tiny")
    assert abs(completion["created"] - time.time()) < 60 and completion["system_fingerprint"]
    assert completion["choices"] == [{"index": 0, "text": engine.text, "logprobs": None, "finish_reason": "stop"}]
    num_tokens = len(engine.token_ids)
    assert completion["usage"] == {"prompt_tokens": 4, "completion_tokens": num_tokens, "total_tokens": 4 + num_tokens}
    assert answer.headers["x-generated-tokens"] == str(num_tokens)


async def test_a_stream_has_one_id_and_done_last(client, engine):
    answer = await client.complete(stream=True)
    assert answer.data[-1] == "[DONE]" and answer.data.count("[DONE]") == 1
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in answer.events}) == 1
    assert answer.events[0]["id"].startswith("cmpl-")
    assert texts_of(answer) == [engine.text] and choices_of(answer)[0]["finish_reason"] == "stop"
    assert {chunk["usage"] for chunk in answer.events} == {None}


async def test_usage_comes_in_a_last_chunk_without_choices_if_it_is_asked_for(client, engine):
    answer = await client.complete(["AAAA", "BB"], stream=True, n=2, stream_options={"include_usage": True})
    *others, last = answer.events
    num_tokens = 4 * len(engine.token_ids)
    assert last["choices"] == [] and {chunk["usage"] for chunk in others} == {None}
    assert last["usage"] == {"prompt_tokens": 6, "completion_tokens": num_tokens, "total_tokens": 6 + num_tokens}


@STREAM_BOTH_WAYS
@pytest.mark.parametrize(
    ("fields", "reason", "text"),
    [
        ({}, "stop", "ABCD"),
        ({"max_tokens": 2}, "length", "AB"),
        ({"stop": "BC"}, "stop", "A"),
        ({"stop": ["ZZ", "BCD"]}, "stop", "A"),
        ({"stop": "A"}, "stop", ""),
        ({"stop": "DX"}, "stop", "ABCD"),
        ({"stop": "BX", "max_tokens": 2}, "length", "AB"),
    ],
)
async def test_every_end_is_stop_or_length_and_a_stop_sequence_is_cut_off(client, engine, stream, fields, reason, text):
    engine.say("ABCD")
    (choice,) = choices_of(await client.complete(stream=stream, **fields))
    assert (choice["finish_reason"], choice["text"]) == (reason, text)


@STREAM_BOTH_WAYS
@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("AB", ["AB"]),
        (["AB"], ["AB"]),
        (["AB", "C", "日本", "é"], ["AB", "C", "日本", "é"]),
    ],
)
async def test_each_prompt_has_a_choice_in_the_order_of_the_prompts(client, engine, stream, prompt, texts):
    engine.say("XXXX", "YYY", "ZZ", "X")  # so that the first prompt is done last
    answer = await client.complete(prompt, stream=stream, echo=True)
    said = ["XXXX", "YYY", "ZZ", "X"]
    assert texts_of(answer) == [text + end for text, end in zip(texts, said, strict=False)]
    assert [request.prompt_token_ids for request in engine.requests] == [ids(engine, text) for text in texts]


@STREAM_BOTH_WAYS
async def test_token_ids_are_prompts_as_they_are(client, engine, stream):
    one, two = ids(engine, "AB"), ids(engine, "日本")
    assert texts_of(await client.complete(one, stream=stream, echo=True)) == ["AB" + engine.text]
    answer = await client.complete([one, [1, *two]], stream=stream, echo=True)
    assert texts_of(answer) == ["AB" + engine.text, "<s>日本" + engine.text]
    assert [request.prompt_token_ids for request in engine.requests] == [one, one, [1, *two]]


@STREAM_BOTH_WAYS
async def test_each_prompt_has_its_n_choices_side_by_side(client, engine, stream):
    engine.say("A", "BB", "CCC", "DDDD")
    answer = await client.complete(["X", "Y"], n=2, seed=5, stream=stream, echo=True)
    assert texts_of(answer) == ["XA", "XBB", "YCCC", "YDDDD"]
    assert [request.sampling.seed for request in engine.requests] == [5, 6, 5, 6]


async def test_of_best_of_choices_the_likeliest_are_shown_for_each_prompt(client, engine):
    engine.say("A", "BB", "CCC", "DDDD", "EE", "F")
    engine.logprobs = {0: -0.3, 1: -0.2, 2: -0.1, 3: -0.1, 4: -0.3, 5: -0.2}
    answer = await client.complete(["X", "Y"], n=2, best_of=3, echo=True)
    assert texts_of(answer) == ["XCCC", "XBB", "YDDDD", "YF"]
    assert answer.json["usage"] == {"prompt_tokens": 2, "completion_tokens": 19, "total_tokens": 21}


@STREAM_BOTH_WAYS
async def test_best_of_as_many_as_are_shown_is_all_of_them(client, engine, stream):
    engine.say("A", "BB")
    assert texts_of(await client.complete("X", n=2, best_of=2, stream=stream)) == ["A", "BB"]


@STREAM_BOTH_WAYS
async def test_echo_puts_the_prompt_before_the_text(client, engine, stream):
    assert texts_of(await client.complete("日本 A", echo=True, stream=stream)) == ["日本 A" + engine.text]
    assert not engine.requests[0].prompt_logprobs


@STREAM_BOTH_WAYS
async def test_logprobs_are_four_lists_with_one_entry_a_token(client, engine, stream):
    engine.say("ABC")
    (choice,) = choices_of(await client.complete(logprobs=2, stream=stream))
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["A", "B", "C"]
    assert logprobs["token_logprobs"] == [-0.5] * 3
    assert logprobs["text_offset"] == [0, 1, 2]
    assert logprobs["top_logprobs"][0] == {"A": -0.5, "B": -1.5}


@STREAM_BOTH_WAYS
async def test_without_alternatives_a_token_is_its_own_only_one(client, engine, stream):
    engine.say("AB")
    (choice,) = choices_of(await client.complete(logprobs=0, stream=stream))
    assert choice["logprobs"]["top_logprobs"] == [{"A": -0.5}, {"B": -0.5}]


@STREAM_BOTH_WAYS
async def test_an_echoed_prompt_is_rated_with_its_first_token_unknown(client, engine, stream):
    engine.say("XY")
    (choice,) = choices_of(await client.complete("A日B", echo=True, logprobs=1, stream=stream))
    logprobs, num_prompt_tokens = choice["logprobs"], len(engine.requests[0].prompt_token_ids)
    assert choice["text"] == "A日BXY"
    assert logprobs["tokens"][0] == "A" and logprobs["tokens"][-2:] == ["X", "Y"]
    assert logprobs["token_logprobs"] == [None, *[-0.75] * (num_prompt_tokens - 1), -0.5, -0.5]
    assert logprobs["top_logprobs"][0] is None and None not in logprobs["top_logprobs"][1:]
    assert {len(values) for values in logprobs.values()} == {num_prompt_tokens + 2}
    assert logprobs["text_offset"][0] == 0 and logprobs["text_offset"][-2:] == [3, 4]
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])


@STREAM_BOTH_WAYS
@pytest.mark.parametrize("prompt", ["ABC", ["ABC", "DE"]])
async def test_a_prompt_alone_can_be_rated_as_evaluation_harnesses_do(client, engine, stream, prompt):
    answer = await client.complete(
        prompt, max_tokens=0, echo=True, logprobs=1, stream=stream, stream_options={"include_usage": True}
    )
    texts = [prompt] if isinstance(prompt, str) else prompt
    for choice, text in zip(choices_of(answer), texts, strict=True):
        assert (choice["text"], choice["finish_reason"]) == (text, "length")
        assert choice["logprobs"]["tokens"] == list(text)
        assert choice["logprobs"]["token_logprobs"] == [None, *[-0.75] * (len(text) - 1)]
    usage = (answer.events[-1] if stream else answer.json)["usage"]
    assert usage["completion_tokens"] == 0 and usage["prompt_tokens"] == sum(map(len, texts))


@STREAM_BOTH_WAYS
async def test_a_prompt_alone_has_its_length_even_where_the_model_would_end(client, engine, stream):
    engine.say("")
    (choice,) = choices_of(await client.complete("AB", max_tokens=0, echo=True, stream=stream))
    assert (choice["text"], choice["logprobs"], choice["finish_reason"]) == ("AB", None, "length")


async def test_tokens_of_a_stop_sequence_that_was_cut_off_have_no_logprobs(client, engine):
    engine.say("ABCD")
    (choice,) = choices_of(await client.complete(logprobs=0, stop="CD"))
    assert choice["logprobs"]["tokens"] == ["A", "B"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"do_sample": True, "temperature": 1.0}),
        ({"temperature": 0}, {"do_sample": False}),
        ({"temperature": 0.5}, {"do_sample": True, "temperature": 0.5}),
        ({"top_p": 1}, {"top_p": None}),
        ({"seed": -2}, {"seed": 2**64 - 2}),
        ({"frequency_penalty": 0.5, "presence_penalty": 1.5}, {"frequency_penalty": 0.5, "presence_penalty": 1.5}),
        ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
        ({"logit_bias": {"5": -100}}, {"logit_bias": {5: -100}}),
        ({"logit_bias": [1.0]}, {"logit_bias": {}}),
    ],
)
async def test_openais_parameters_mean_what_they_mean_there(client, engine, fields, expected):
    assert (await client.complete(**fields)).status == 200
    sampling = engine.requests[0].sampling
    assert {name: getattr(sampling, name) for name in expected} == expected


@pytest.mark.parametrize("prompts", [1, 2])
async def test_a_stream_that_breaks_off_has_one_error_and_no_end(client, engine, prompts):
    engine.failure = errors.GenerationFailed("out of memory")
    answer = await client.complete(["A"] * prompts, stream=True, stream_options={"include_usage": True})
    *chunks, last = answer.events
    message = "Request failed during generation: out of memory"
    error = {"message": message, "type": "generation", "code": "generation", "param": None}
    assert last == {"error": error, "error_type": "generation"}
    assert "[DONE]" not in answer.data and all("error" not in chunk and chunk["usage"] is None for chunk in chunks)
    assert {choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]} == {None}


@STREAM_BOTH_WAYS
async def test_an_overloaded_engine_is_a_429_that_openais_client_tries_again(client, engine, stream):
    engine.refusal = errors.Overloaded()
    answer = await client.complete(stream=stream)
    assert (answer.status, answer.json["error"]["code"]) == (429, "overloaded")

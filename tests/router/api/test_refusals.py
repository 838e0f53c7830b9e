"""Every refusal of a parameter, in the original's words, on every route that takes the parameter, streamed or not."""

import dataclasses
from typing import Any

import pytest

PREFIX = "Input validation error: "
MAX_SEED = 2**64 - 1
LOREM = "A" * 21


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal:
    """What of it can be said to the native routes (`inputs`, and parameters), to chat and to completions."""

    message: str
    native: dict[str, Any] | None = None
    chat: dict[str, Any] | None = None
    completion: dict[str, Any] | None = None
    streamed: bool | None = None  # None: both ways

    def bodies(self, streamed: bool):
        """Each route with the body that it refuses, and whether its errors have OpenAI's shape."""
        if self.streamed not in (None, streamed):
            return
        if self.native is not None:
            parameters = dict(self.native)
            body = {"inputs": parameters.pop("inputs", "AAAA"), "parameters": parameters}
            yield "/generate_stream" if streamed else "/generate", body, False
            yield "/", body | {"stream": streamed}, False
            yield "/invocations", body | {"stream": streamed}, False
            if not streamed:
                yield "/vertex", {"instances": [body]}, False
        if self.chat is not None:
            body = {"messages": [{"role": "user", "content": "AAAA"}], "stream": streamed} | self.chat
            yield "/v1/chat/completions", body, True
            yield "/invocations", body, True
            if not streamed:
                yield "/vertex", {"instances": [body]}, False
        if self.completion is not None:
            body = {"prompt": "AAAA", "stream": streamed} | self.completion
            yield "/v1/completions", body, True
            yield "/invocations", body, True


def everywhere(message, **parameters):
    return Refusal(message, parameters, parameters, parameters)


def native(message, streamed=None, **parameters):
    return Refusal(message, parameters, streamed=streamed)


def chat(message, **fields):
    return Refusal(message, chat=fields)


def openai(message, **fields):
    return Refusal(message, chat=fields, completion=fields)


def completion(message, streamed=None, **fields):
    return Refusal(message, completion=fields, streamed=streamed)


def says(content):
    return [{"role": "user", "content": content}]


STRICTLY_POSITIVE = "must be strictly positive"
BETWEEN_0_AND_1 = "must be > 0.0 and < 1.0"
BETWEEN_2S = "must be >= -2.0 and <= 2.0"
GRAMMARS = [
    {"type": "json", "value": {"properties": {"a": {"type": "string"}}}},
    {"type": "json_object", "value": {"properties": {}}},
    {"type": "json_schema", "value": {"name": "x", "schema": {}}},
    {"type": "regex", "value": "a*"},
]
REFUSALS = [
    native("you must use sampling when `best_of` is > 1", streamed=False, best_of=2),
    native("`best_of` must be > 0 and <= 2. Given: 3", best_of=3, do_sample=True),
    native("`best_of` must be > 0 and <= 2. Given: -1", best_of=-1, do_sample=True),
    native("`seed` must not be set when `best_of` > 1", streamed=False, best_of=2, do_sample=True, seed=1),
    native("`best_of` != 1 is not supported when streaming tokens", streamed=True, best_of=2, do_sample=True),
    completion("`best_of` != 1 is not supported when streaming tokens", streamed=True, best_of=2),
    native("`decoder_input_details` == true is not supported when streaming tokens", True, decoder_input_details=True),
    native("`top_n_tokens` must be >= 0 and <= 5. Given: 6", top_n_tokens=6),
    native("`top_n_tokens` must be >= 0 and <= 5. Given: -1", top_n_tokens=-1),
    chat("`top_n_tokens` must be >= 0 and <= 20. Given: 21", logprobs=True, top_logprobs=21),
    completion("`top_n_tokens` must be >= 0 and <= 20. Given: 21", logprobs=21),
    completion("`top_n_tokens` must be >= 0 and <= 20. Given: -1", logprobs=-1),
    native(f"`temperature` {STRICTLY_POSITIVE}", temperature=0),
    everywhere(f"`temperature` {STRICTLY_POSITIVE}", temperature=-0.5),
    everywhere(f"`temperature` {STRICTLY_POSITIVE}", temperature=1e-60),
    everywhere("`temperature` must be finite", temperature=1e60),
    *(
        Refusal(f"`repetition_penalty` {STRICTLY_POSITIVE}", given, completion=given)
        for given in ({"repetition_penalty": 0}, {"repetition_penalty": -1.5})
    ),
    everywhere(f"`frequency_penalty` {BETWEEN_2S}", frequency_penalty=2.1),
    everywhere(f"`frequency_penalty` {BETWEEN_2S}", frequency_penalty=-2.1),
    openai(f"`presence_penalty` {BETWEEN_2S}", presence_penalty=2.1),
    openai(f"`presence_penalty` {BETWEEN_2S}", presence_penalty=-2.1),
    everywhere(f"`top_p` {BETWEEN_0_AND_1}", top_p=0),
    everywhere(f"`top_p` {BETWEEN_0_AND_1}", top_p=1.5),
    native(f"`top_p` {BETWEEN_0_AND_1}", top_p=1),
    native(f"`typical_p` {BETWEEN_0_AND_1}", typical_p=0),
    native(f"`typical_p` {BETWEEN_0_AND_1}", typical_p=1.0),
    native(f"`top_k` {STRICTLY_POSITIVE}", top_k=0),
    native(f"`top_k` {STRICTLY_POSITIVE}", top_k=-1),
    native("`truncate` must be strictly positive and less than 20. Given: 0", truncate=0),
    native("`truncate` must be strictly positive and less than 20. Given: 21", truncate=21),
    native(f"`max_new_tokens` {STRICTLY_POSITIVE}", max_new_tokens=0),
    openai(f"`max_new_tokens` {STRICTLY_POSITIVE}", max_tokens=0),
    openai(f"`max_new_tokens` {STRICTLY_POSITIVE}", max_tokens=-1),
    chat(f"`max_new_tokens` {STRICTLY_POSITIVE}", max_completion_tokens=0),
    Refusal(
        "`inputs` tokens + `max_new_tokens` must be <= 32. Given: 4 `inputs` tokens and 29 `max_new_tokens`",
        {"max_new_tokens": 29},
        completion={"max_tokens": 29},
    ),
    chat("`inputs` tokens + `max_new_tokens` must be <= 32. Given: 9 `inputs` tokens and 24 `max_new_tokens`", max_tokens=24),
    Refusal("`inputs` must have less than 20 tokens. Given: 21", {"inputs": LOREM}, completion={"prompt": LOREM}),
    completion("`inputs` must have less than 20 tokens. Given: 21", prompt=["AAAA", LOREM]),
    completion("`inputs` must have less than 20 tokens. Given: 21", prompt=[5] * 21),
    chat("`inputs` must have less than 20 tokens. Given: 26", messages=says(LOREM)),
    Refusal("`inputs` cannot be empty", {"inputs": ""}, completion={"prompt": ""}),
    completion("`inputs` cannot be empty", prompt=["AAAA", ""]),
    completion("`inputs` cannot be empty", prompt=[[]]),
    everywhere("`stop` supports up to 4 stop sequences. Given: 5", stop=list("abcde")),
    everywhere("`stop` sequences cannot be empty", stop=["a", ""]),
    native(f"`seed` must be >= 0 and <= {MAX_SEED}. Given: -1", seed=-1),
    native(f"`seed` must be >= 0 and <= {MAX_SEED}. Given: {2**64}", seed=2**64, do_sample=True),
    *(native("grammar is not supported", grammar=grammar) for grammar in GRAMMARS),
    *(chat("grammar is not supported", response_format=grammar) for grammar in GRAMMARS),
    chat("grammar is not supported", response_format={"type": "json_object"}),
    chat("grammar is not supported", response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}),
    native("`adapter_id` is not supported by this server: it serves no adapters", adapter_id="lora"),
    openai("`n` must be > 0 and <= 128. Given: 0", n=0),
    openai("`n` must be > 0 and <= 128. Given: 129", n=129),
    completion("`best_of` must be > 0 and <= 128. Given: 129", best_of=129),
    completion("`best_of` must be >= `n`. Given: 1 and 2", best_of=1, n=2),
    openai("`logit_bias` token ids must be >= 0 and < 340", logit_bias={"340": 1}),
    openai("`logit_bias` must map token ids to numbers. Given: '-1'", logit_bias={"-1": 1}),
    openai("`logit_bias` must map token ids to numbers. Given: 'Rome'", logit_bias={"Rome": 1}),
    openai("`logit_bias` must be >= -100 and <= 100", logit_bias={"5": 100.5}),
    completion("`prompt` token ids must be >= 0 and < 340", prompt=[5, 340]),
    completion("`prompt` token ids must be >= 0 and < 340", prompt=[[5], [-1]]),
    completion("`prompt` must hold either token ids, texts or lists of token ids", prompt=[5, "AAAA"]),
    completion("Empty array detected. Do not use an empty array for the prompt.", prompt=[]),
    chat("`messages` cannot be empty", messages=[]),
    chat("`messages[0].content` is missing", messages=[{"role": "user"}]),
    chat("`messages[1].content` is missing", messages=[*says("A"), {"role": "assistant", "tool_calls": []}]),
    chat("image modality is not supported", messages=says([{"type": "image_url", "image_url": {"url": "http://x/y.png"}}])),
]
CASES = [
    pytest.param(route, body, openai_shape, refusal.message, id=f"{route}-{'stream' if streamed else 'whole'}-{number}")
    for number, refusal in enumerate(REFUSALS)
    for streamed in (False, True)
    for route, body, openai_shape in refusal.bodies(streamed)
]


def error_of(answer, openai_shape):
    """The message and the `error_type`, after a look at the shape around them."""
    if not openai_shape:
        assert set(answer.json) == {"error", "error_type"}
        return answer.json["error"], answer.json["error_type"]
    assert set(answer.json) == {"error", "error_type"}
    error = answer.json["error"]
    assert error == {
        "message": error["message"],
        "type": "invalid_request_error",
        "code": answer.json["error_type"],
        "param": None,
    }
    return error["message"], answer.json["error_type"]


@pytest.mark.parametrize(("route", "body", "openai_shape", "message"), CASES)
async def test_what_cannot_be_run_is_a_422_in_the_words_of_the_original(
    client, engine, route, body, openai_shape, message
):
    answer = await client.post(route, body)
    assert answer.status == 422
    assert error_of(answer, openai_shape) == (PREFIX + message, "validation")
    assert engine.requests == []


@pytest.mark.parametrize(
    ("route", "body"),
    [
        (route, body)
        for streamed in (False, True)
        for route, body, _ in native("", best_of=2, do_sample=True).bodies(streamed)
    ],
)
async def test_where_one_answer_is_the_most_best_of_is_not_allowed(client_of, engine, route, body):
    client = await client_of(max_best_of=1)
    answer = await client.post(route, body)
    assert error_of(answer, False) == (f"{PREFIX}`best_of` != 1 is not allowed for this endpoint", "validation")
    assert engine.requests == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/invocations"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tools": [], "response_format": {"type": "json_object"}}, "Grammar and tools are mutually exclusive"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
            'tools are not supported by this server yet; with `tool_choice` "none" they are passed over',
        ),
    ],
)
async def test_tools_are_refused_as_a_tool_error(client, engine, route, stream, fields, message):
    answer = await client.post(route, messages=says("AAAA"), stream=stream, **fields)
    assert answer.status == 422
    assert error_of(answer, True) == (f"Tool error: {message}", "tool_error")
    assert engine.requests == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ["/v1/completions", "/invocations"])
@pytest.mark.parametrize(
    ("fields", "message", "error_type"),
    [
        (
            {"suffix": "end"},
            "Suffix is not supported and can be achieved by preprocessing the prompt.",
            "suffix not supported",
        ),
        (
            {"prompt": ["A"] * 5},
            "Number of prompts exceeds the maximum allowed batch size of 4",
            "batch size exceeded",
        ),
    ],
)
async def test_completions_have_refusals_of_their_own(client, engine, route, stream, fields, message, error_type):
    answer = await client.post(route, {"prompt": "AAAA", "stream": stream} | fields)
    assert answer.status == 422
    assert error_of(answer, True) == (message, error_type)
    assert engine.requests == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/invocations"])
async def test_what_a_template_refuses_is_a_template_error(client, engine, route, stream):
    answer = await client.post(route, messages=[{"role": "refused", "content": "A"}], stream=stream)
    assert answer.status == 422
    assert error_of(answer, True) == ("Template error: no such role", "template_error")
    assert engine.requests == []

import json
import math

import pytest

from text_generation_router import schema
from text_generation_router.errors import MalformedBody, ValidationError


def decode(text: str | bytes) -> schema.GenerateRequest:
    return schema.decode(text.encode() if isinstance(text, str) else text, schema.GenerateRequest)


def test_a_request_with_every_parameter_of_the_original_is_decoded():
    parameters = {
        "best_of": 1, "temperature": 0.5, "repetition_penalty": 1.1, "frequency_penalty": 0.1, "top_k": 10,
        "top_p": 0.9, "typical_p": 0.95, "do_sample": True, "max_new_tokens": 20, "return_full_text": True,
        "stop": ["a"], "truncate": 5, "watermark": True, "details": True, "decoder_input_details": True, "seed": 1,
        "top_n_tokens": 5, "grammar": {"type": "regex", "value": "a*"}, "adapter_id": "x",
    }  # fmt: skip
    decoded = decode(json.dumps({"inputs": "hi", "parameters": parameters})).parameters
    assert {name: getattr(decoded, name) for name in decoded.__struct_fields__} == parameters


def test_unknown_fields_are_ignored_at_every_level():
    assert decode('{"inputs": "hi", "x": {"y": [1]}, "parameters": {"z": null}}').inputs == "hi"


def test_null_stands_for_a_parameter_that_is_not_set():
    assert decode('{"inputs": "hi", "parameters": {"temperature": null, "seed": null}}').parameters.temperature is None


def test_whole_numbers_pass_as_floats():
    assert decode('{"inputs": "hi", "parameters": {"temperature": 2}}').parameters.temperature == 2.0


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ('{"parameters": {}}', "`inputs`"),
        ('{"inputs": 3}', "`$.inputs`"),
        ('{"inputs": ["a"]}', "`$.inputs`"),
        ('{"inputs": "a", "parameters": []}', "`$.parameters`"),
        ('{"inputs": "a", "parameters": {"temperature": "hot"}}', "`$.parameters.temperature`"),
        ('{"inputs": "a", "parameters": {"max_new_tokens": 1.5}}', "`$.parameters.max_new_tokens`"),
        ('{"inputs": "a", "parameters": {"do_sample": null}}', "`$.parameters.do_sample`"),
        ('{"inputs": "a", "parameters": {"stop": "x"}}', "`$.parameters.stop`"),
        ('{"inputs": "a", "parameters": {"stop": ["x", 1]}}', "`$.parameters.stop[1]`"),
        ('{"inputs": "a", "parameters": {"top_k": 2147483648}}', "`$.parameters.top_k`"),
        ('{"inputs": "a", "parameters": {"temperature": 1e999}}', "`$.parameters.temperature`"),
        ('{"inputs": "a", "parameters": {"seed": ' + "9" * 6000 + "}}", "`$.parameters.seed`"),
        ("[]", "object"),
        ("null", "object"),
    ],
)
def test_a_wrong_type_is_a_validation_error_that_names_the_field(body, place):
    with pytest.raises(ValidationError, match="Input validation error: ") as caught:
        decode(body)
    assert place in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "{'inputs': 'a'}",
        '{"inputs": "a"} more',
        '{"inputs": "a", "parameters": {"temperature": NaN}}',
        '{"inputs": "a", "parameters": {"temperature": -Infinity}}',
        '{"inputs": "\\ud800"}',
        b'{"inputs": "\xff"}',
        b"\xff\xfe",
        '{"inputs": "a", "x": ' + "[" * 100_000,
        '{"inputs": "a", "parameters": {"grammar": {"a": ' + "[" * 100_000,
    ],
)
def test_what_is_no_json_is_a_malformed_body(body):
    with pytest.raises(MalformedBody, match="The body is not valid JSON: "):
        decode(body)


def test_a_response_without_details_has_no_such_key_and_a_stream_event_always_has_one():
    assert json.loads(schema.encode(schema.GenerateResponse("text"))) == {"generated_text": "text"}
    event = json.loads(schema.encode(schema.StreamResponse(1, schema.Token(5, "a", -0.5, False))))
    token = {"id": 5, "text": "a", "logprob": -0.5, "special": False}
    assert event == {"index": 1, "token": token, "generated_text": None, "details": None}


def test_logprobs_that_json_cannot_say_become_null():
    assert json.loads(schema.encode(schema.Token(5, "a", -math.inf, False)))["logprob"] is None


def test_text_leaves_as_utf8_not_as_escapes():
    assert "日本🙂".encode() in schema.encode(schema.GenerateResponse("日本🙂"))

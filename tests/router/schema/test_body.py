import json
import math

import pytest

from text_generation_router import errors
from text_generation_router.errors import MalformedBody, ValidationError
from text_generation_router.schema.body import decode, encode, json_schemas, native_error, openai_error
from text_generation_router.schema.generate import GenerateRequest, GenerateResponse, Token


def read(text):
    return decode(text.encode() if isinstance(text, str) else text, GenerateRequest)


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
        read(body)


@pytest.mark.parametrize("body", ["[]", "null", '"inputs"', "1"])
def test_what_is_no_object_is_a_validation_error(body):
    with pytest.raises(ValidationError, match="Input validation error: Expected `object`"):
        read(body)


def test_unknown_fields_are_ignored_at_every_level():
    assert read('{"inputs": "hi", "x": {"y": [1]}, "parameters": {"z": null}}').inputs == "hi"


@pytest.mark.parametrize("logprob", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_cannot_say_become_null(logprob):
    assert json.loads(encode(Token(5, "a", logprob, False)))["logprob"] is None


def test_text_leaves_as_utf8_not_as_escapes():
    assert "日本🙂".encode() in encode(GenerateResponse("日本🙂"))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.MalformedBody("x"), "invalid_request_error"),
        (errors.Unauthorized(), "invalid_request_error"),
        (errors.PayloadTooLarge(1), "invalid_request_error"),
        (errors.ValidationError("x"), "invalid_request_error"),
        (errors.TemplateError("x"), "invalid_request_error"),
        (errors.GenerationFailed("x"), "generation"),
        (errors.Overloaded(), "overloaded"),
        (errors.InternalError(), "internal"),
        (errors.NotReady("x"), "not_ready"),
    ],
)
def test_an_error_has_two_shapes_that_say_the_same(error, kind):
    message, code = str(error), error.error_type
    assert json.loads(encode(native_error(error))) == {"error": message, "error_type": code}
    inner = {"message": message, "type": kind, "code": code, "param": None}
    assert json.loads(encode(openai_error(error))) == {"error": inner, "error_type": code}


def test_schemas_come_in_the_order_of_the_types_with_their_parts():
    (first, second), parts = json_schemas([GenerateRequest, list[Token]])
    assert first == {"$ref": "#/components/schemas/GenerateRequest"}
    assert second == {"type": "array", "items": {"$ref": "#/components/schemas/Token"}}
    assert set(parts) == {"GenerateRequest", "GenerateParameters", "Token"}

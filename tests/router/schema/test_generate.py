import json

import pytest

from text_generation_router.errors import ValidationError
from text_generation_router.schema.body import decode, encode
from text_generation_router.schema.generate import (
    CompatGenerateRequest,
    GenerateRequest,
    GenerateResponse,
    StreamResponse,
    Token,
)

ALL_PARAMETERS = {
    "best_of": 1, "temperature": 0.5, "repetition_penalty": 1.1, "frequency_penalty": 0.1, "top_k": 10,
    "top_p": 0.9, "typical_p": 0.95, "do_sample": True, "max_new_tokens": 20, "return_full_text": True,
    "stop": ["a"], "truncate": 5, "watermark": True, "details": True, "decoder_input_details": True, "seed": 1,
    "top_n_tokens": 5, "grammar": {"type": "regex", "value": "a*"}, "adapter_id": "x",
}  # fmt: skip
NOT_NULLABLE = {"do_sample", "stop", "watermark", "details", "decoder_input_details"}


def read(text, body_type=GenerateRequest):
    return decode(text.encode(), body_type)


@pytest.mark.parametrize("body_type", [GenerateRequest, CompatGenerateRequest])
def test_a_request_with_every_parameter_of_the_original_is_decoded(body_type):
    decoded = read(json.dumps({"inputs": "hi", "parameters": ALL_PARAMETERS}), body_type).parameters
    assert {name: getattr(decoded, name) for name in decoded.__struct_fields__} == ALL_PARAMETERS


@pytest.mark.parametrize("name", sorted(ALL_PARAMETERS.keys() - NOT_NULLABLE))
def test_null_stands_for_a_parameter_that_is_not_set(name):
    assert getattr(read(json.dumps({"inputs": "hi", "parameters": {name: None}})).parameters, name) is None


@pytest.mark.parametrize("name", sorted(NOT_NULLABLE))
def test_switches_and_lists_cannot_be_null(name):
    with pytest.raises(ValidationError, match=rf"`\$\.parameters\.{name}`"):
        read(json.dumps({"inputs": "hi", "parameters": {name: None}}))


def test_whole_numbers_pass_as_floats():
    assert read('{"inputs": "hi", "parameters": {"temperature": 2}}').parameters.temperature == 2.0


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ('{"parameters": {}}', "`inputs`"),
        ('{"inputs": null}', "`$.inputs`"),
        ('{"inputs": 3}', "`$.inputs`"),
        ('{"inputs": ["a"]}', "`$.inputs`"),
        ('{"inputs": "a", "parameters": []}', "`$.parameters`"),
        ('{"inputs": "a", "parameters": {"temperature": "hot"}}', "`$.parameters.temperature`"),
        ('{"inputs": "a", "parameters": {"max_new_tokens": 1.5}}', "`$.parameters.max_new_tokens`"),
        ('{"inputs": "a", "parameters": {"stop": "x"}}', "`$.parameters.stop`"),
        ('{"inputs": "a", "parameters": {"stop": ["x", 1]}}', "`$.parameters.stop[1]`"),
        ('{"inputs": "a", "parameters": {"top_k": 2147483648}}', "`$.parameters.top_k`"),
        ('{"inputs": "a", "parameters": {"temperature": 1e999}}', "`$.parameters.temperature`"),
        ('{"inputs": "a", "parameters": {"seed": ' + "9" * 6000 + "}}", "`$.parameters.seed`"),
    ],
)
def test_a_wrong_type_is_a_validation_error_that_names_the_field(body, place):
    with pytest.raises(ValidationError, match="Input validation error: ") as caught:
        read(body)
    assert place in str(caught.value)


def test_a_response_without_details_has_no_such_key_and_a_stream_event_always_has_one():
    assert json.loads(encode(GenerateResponse("text"))) == {"generated_text": "text"}
    event = json.loads(encode(StreamResponse(1, Token(5, "a", -0.5, False))))
    token = {"id": 5, "text": "a", "logprob": -0.5, "special": False}
    assert event == {"index": 1, "token": token, "generated_text": None, "details": None}

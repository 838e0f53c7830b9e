import json

import pytest

from text_generation_router.errors import ValidationError
from text_generation_router.schema.body import decode, encode
from text_generation_router.schema.chat import ChatRequest, ChunkChoice, Delta, ImagePart, ImageUrl, TextPart

USER = {"role": "user", "content": "A"}


def read(**fields):
    return decode(json.dumps({"messages": [USER]} | fields).encode(), ChatRequest)


@pytest.mark.parametrize("name", sorted(set(ChatRequest.__struct_fields__) - {"messages"}))
def test_clients_that_send_what_they_do_not_set_as_null_are_understood(name):
    assert getattr(read(**{name: None}), name) is None


def test_what_openais_client_can_send_is_understood():
    body = read(
        model="gpt-4o", max_completion_tokens=5, temperature=0, stop="x", logit_bias={"5": -100}, logprobs=True,
        top_logprobs=2, n=2, seed=-5, stream=True, stream_options={"include_usage": True, "include_obfuscation": False},
        user="me", store=False, metadata={"a": "b"}, parallel_tool_calls=True, reasoning_effort="low",
    )  # fmt: skip
    assert (body.stop, body.logit_bias, body.seed, body.stream_options.include_usage) == ("x", {"5": -100}, -5, True)


@pytest.mark.parametrize(
    ("content", "decoded"),
    [
        ("A", "A"),
        (None, None),
        ([{"type": "text", "text": "A"}], [TextPart("A")]),
        ([{"type": "image_url", "image_url": {"url": "x", "detail": "low"}}], [ImagePart(ImageUrl("x"))]),
    ],
)
def test_content_is_a_text_or_a_list_of_parts(content, decoded):
    assert read(messages=[{"role": "user", "content": content}]).messages[0].content == decoded


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"messages": None}, "`$.messages`"),
        ({"messages": [{"content": "A"}]}, "`$.messages[0]`"),
        ({"messages": [{"role": "user", "content": 1}]}, "`$.messages[0].content`"),
        ({"messages": [USER, {"role": "user", "content": [{"type": "audio"}]}]}, "`$.messages[1].content[0].type`"),
        ({"stop": 1}, "`$.stop`"),
        ({"logprobs": 2}, "`$.logprobs`"),
        ({"logit_bias": {"5": "x"}}, "`$.logit_bias[...]`"),
        ({"max_tokens": "5"}, "`$.max_tokens`"),
    ],
)
def test_a_wrong_type_is_a_validation_error_that_names_the_field(fields, place):
    with pytest.raises(ValidationError) as caught:
        read(**fields)
    assert place in str(caught.value)


def test_a_delta_has_only_the_fields_that_say_something():
    assert json.loads(encode(ChunkChoice(0, Delta())))["delta"] == {}
    assert json.loads(encode(ChunkChoice(0, Delta(content="A"))))["delta"] == {"content": "A"}

import pytest

from text_generation_router.api.conversation import to_messages
from text_generation_router.errors import ValidationError
from text_generation_router.schema.chat import ChatRequest, ImagePart, ImageUrl, Message, TextPart

TOOL_CALLS = [{"id": "0", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (Message("user", "A"), {"role": "user", "content": "A"}),
        (Message("user", "A", name="Ann"), {"role": "user", "content": "A", "name": "Ann"}),
        (Message("user", [TextPart("A"), TextPart(" B")]), {"role": "user", "content": "A B"}),
        (Message("user", []), {"role": "user", "content": ""}),
        (Message("assistant", tool_calls=TOOL_CALLS), {"role": "assistant", "content": "", "tool_calls": TOOL_CALLS}),
        (Message("tool", "4", tool_call_id="0"), {"role": "tool", "content": "4", "tool_call_id": "0"}),
    ],
)
def test_a_template_gets_the_fields_that_are_there_and_no_others(message, expected):
    assert to_messages(ChatRequest([message])) == [expected]


def test_an_image_is_refused_wherever_it_is():
    parts = [TextPart("A"), ImagePart(ImageUrl("data:image/png;base64,AAAA"))]
    with pytest.raises(ValidationError, match="image modality is not supported"):
        to_messages(ChatRequest([Message("user", "A"), Message("user", parts)]))

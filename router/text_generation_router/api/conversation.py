"""A chat request's conversation as a template wants it, and the reasons why one cannot be had.

In: a ChatRequest. Out: messages. Knows nothing of templates.
"""

from text_generation_router.chat_template import Message as TemplateMessage
from text_generation_router.errors import ToolError, ValidationError
from text_generation_router.schema.chat import ChatRequest, ImagePart, Message, TextPart


def to_messages(body: ChatRequest) -> list[TemplateMessage]:
    """
    Raises:
        ValidationError, ToolError: no messages, a message without words, or what this server cannot do.
    """
    if not body.messages:
        raise ValidationError("`messages` cannot be empty")
    _refuse_unsupported(body)
    return [_to_message(message, index) for index, message in enumerate(body.messages)]


def _refuse_unsupported(body: ChatRequest) -> None:
    constrains = body.response_format is not None and body.response_format.get("type") != "text"
    if constrains and body.tools is not None:
        raise ToolError("Grammar and tools are mutually exclusive")
    if constrains:
        raise ValidationError("grammar is not supported")
    if body.tools and body.tool_choice != "none":
        raise ToolError("tools are not supported by this server yet; with `tool_choice` \"none\" they are passed over")


def _to_message(message: Message, index: int) -> TemplateMessage:
    """Without the fields that are not there: templates ask whether they are."""
    content = _text(message, index)
    fields = {"name": message.name, "tool_calls": message.tool_calls, "tool_call_id": message.tool_call_id}
    return {"role": message.role, "content": content} | {key: value for key, value in fields.items() if value is not None}


def _text(message: Message, index: int) -> str:
    if message.content is None and not message.tool_calls:
        raise ValidationError(f"`messages[{index}].content` is missing")
    if isinstance(message.content, list):
        return "".join(_part_text(part) for part in message.content)
    return message.content or ""


def _part_text(part: TextPart | ImagePart) -> str:
    if isinstance(part, ImagePart):
        raise ValidationError("image modality is not supported")
    return part.text

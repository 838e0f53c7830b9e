"""The bodies of /v1/chat/completions and /chat_tokenize.

In and out: field by field what OpenAI's API has, and what Text Generation Inference adds. Knows nothing of limits.
"""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from text_generation_router.schema.documented import (
    Choices,
    FractionOrOne,
    Penalty,
    PositiveCount,
    Temperature,
    Text,
    TopLogprobs,
)
from text_generation_router.schema.generate import SimpleToken
from text_generation_router.schema.openai import LogitBias, OpenAIFinishReason, StreamOptions, Usage


class TextPart(Struct, tag="text", tag_field="type"):
    text: str


class ImageUrl(Struct):
    url: str


class ImagePart(Struct, tag="image_url", tag_field="type"):
    image_url: ImageUrl


class Message(Struct):
    role: str
    content: str | list[TextPart | ImagePart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class ChatRequest(Struct):
    messages: Annotated[list[Message], Meta(extra_json_schema={"minItems": 1})]
    model: str | None = None
    max_tokens: PositiveCount = None
    max_completion_tokens: PositiveCount = None
    temperature: Temperature = None
    top_p: FractionOrOne = None
    stop: Text | list[Text] | None = None
    seed: int | None = None
    frequency_penalty: Penalty = None
    presence_penalty: Penalty = None
    logit_bias: LogitBias = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs = None
    n: Choices = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    tool_prompt: str | None = None
    response_format: dict[str, Any] | None = None


class TopLogprob(Struct):
    token: str
    logprob: float | None
    bytes: list[int]


class TokenLogprob(Struct):
    token: str
    logprob: float | None
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    content: list[TokenLogprob]


class OutputMessage(Struct):
    role: Literal["assistant"]
    content: str


class ChatChoice(Struct):
    index: int
    message: OutputMessage
    logprobs: ChatLogprobs | None
    finish_reason: OpenAIFinishReason


class ChatCompletion(Struct):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(Struct):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChunkChoice(Struct):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: OpenAIFinishReason | None = None


class ChatChunk(Struct):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class ChatTokenizeResponse(Struct):
    tokenize_response: list[SimpleToken]
    templated_text: str

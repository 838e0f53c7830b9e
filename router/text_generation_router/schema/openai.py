"""What the two OpenAI routes' bodies have in common.

The names and meanings are those of OpenAI's API reference, https://platform.openai.com/docs/api-reference.
"""

from typing import Literal

from msgspec import Struct

OpenAIFinishReason = Literal["stop", "length"]
LogitBias = dict[str, float] | list[float] | None  # the original has a list there, which nothing reads


class StreamOptions(Struct):
    include_usage: bool | None = None


class Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ModelCard(Struct):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Struct):
    object: Literal["list"]
    data: list[ModelCard]

"""The bodies of /v1/completions.

In and out: field by field what OpenAI's API has, and what Text Generation Inference adds. Knows nothing of limits.
"""

from typing import Literal

from msgspec import Struct

from text_generation_router.schema.documented import (
    Choices,
    Count,
    FractionOrOne,
    Penalty,
    Positive,
    Temperature,
    Text,
    TokenId,
    TopLogprobs,
)
from text_generation_router.schema.openai import LogitBias, OpenAIFinishReason, StreamOptions, Usage


class CompletionRequest(Struct):
    prompt: Text | list[Text | TokenId | list[TokenId]]  # a text, texts, token ids, or lists of token ids
    model: str | None = None
    max_tokens: Count = None  # 0 only with echo
    temperature: Temperature = None
    top_p: FractionOrOne = None
    n: Choices = None
    best_of: Choices = None
    echo: bool | None = None
    logprobs: TopLogprobs = None
    stop: Text | list[Text] | None = None
    seed: int | None = None
    suffix: str | None = None  # refused
    repetition_penalty: Positive = None
    frequency_penalty: Penalty = None
    presence_penalty: Penalty = None
    logit_bias: LogitBias = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class CompletionLogprobs(Struct):
    """One entry for each token; the first token of an echoed prompt has neither a log-probability nor alternatives."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float | None] | None]


class CompletionChoice(Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: OpenAIFinishReason | None


class Completion(Struct):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None  # null in the chunks of a stream, but for a last one on request

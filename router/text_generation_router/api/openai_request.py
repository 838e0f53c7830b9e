"""What the two OpenAI routes have in common: their parameters as validation takes them, and how an answer is named.

In: their bodies. Out: the native parameters and the rest. Knows nothing of prompts.
"""

import dataclasses
import time
import uuid

from text_generation_router.api.serving import VERSION
from text_generation_router.errors import ValidationError
from text_generation_router.schema.chat import ChatRequest
from text_generation_router.schema.completions import CompletionRequest
from text_generation_router.schema.generate import GenerateParameters
from text_generation_router.schema.openai import OpenAIFinishReason, Usage
from text_generation_router.stopping import FinishReason
from text_generation_router.validation import OpenAIParameters

MAX_CHOICES = 128


@dataclasses.dataclass(frozen=True, slots=True)
class Envelope:
    """What every body of one answer repeats."""

    id: str
    created: int
    model: str
    system_fingerprint: str = f"{VERSION}-native"

    @classmethod
    def new(cls, prefix: str, model: str) -> "Envelope":
        return cls(f"{prefix}-{uuid.uuid4().hex}", int(time.time()), model)


def native_parameters(body: ChatRequest | CompletionRequest, max_tokens: int | None) -> GenerateParameters:
    """OpenAI samples unless the temperature is 0. What it can say and the native API refuses (`top_p: 1`, a single text as
    `stop`, a negative seed) is said here in the native way."""
    greedy = body.temperature == 0
    stop = [body.stop] if isinstance(body.stop, str) and body.stop else body.stop
    has_no_effect = body.top_p == 1 or (greedy and body.top_p is not None and 0 < body.top_p < 1)
    return GenerateParameters(
        do_sample=not greedy,
        temperature=None if greedy else body.temperature,
        top_p=None if has_no_effect else body.top_p,
        frequency_penalty=body.frequency_penalty,
        max_new_tokens=max_tokens,
        stop=stop or [],
        seed=None if body.seed is None else body.seed % 2**64,
    )


def openai_parameters(body: ChatRequest | CompletionRequest) -> OpenAIParameters:
    return OpenAIParameters(
        presence_penalty=body.presence_penalty, logit_bias=body.logit_bias if isinstance(body.logit_bias, dict) else {}
    )


def num_choices(name: str, asked: int | None) -> int:
    """Raises: ValidationError."""
    if asked is not None and not 0 < asked <= MAX_CHOICES:
        raise ValidationError(f"`{name}` must be > 0 and <= {MAX_CHOICES}. Given: {asked}")
    return asked or 1


def finish_reason(reason: FinishReason | None) -> OpenAIFinishReason:
    return "length" if reason == "length" else "stop"


def usage(num_prompt_tokens: int, num_tokens: int) -> Usage:
    return Usage(num_prompt_tokens, num_tokens, num_prompt_tokens + num_tokens)

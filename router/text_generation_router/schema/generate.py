"""The native API's bodies: /generate, /generate_stream, / and what goes around them (/tokenize, /vertex, /invocations).

In and out: field by field what Text Generation Inference has. Knows nothing of limits.
"""

from typing import Annotated, Any

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from text_generation_router.schema.documented import (
    Count,
    Fraction,
    Penalty,
    Positive,
    PositiveCount,
    Seed,
    Text,
)

Int32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]


class GenerateParameters(Struct):
    """What is left out has its default; any of temperature, top_k, top_p and typical_p turns sampling on."""

    best_of: PositiveCount = None  # needs sampling; not in streams
    temperature: Positive = None
    repetition_penalty: Positive = None
    frequency_penalty: Penalty = None
    top_k: Annotated[Int32 | None, Meta(extra_json_schema={"minimum": 1})] = None
    top_p: Fraction = None
    typical_p: Fraction = None
    do_sample: bool = False
    max_new_tokens: PositiveCount = None  # as many as the model and the limits allow
    return_full_text: bool | None = None
    stop: list[Text] = []
    truncate: PositiveCount = None
    watermark: bool = False
    details: bool = False
    decoder_input_details: bool = False  # not in streams
    seed: Seed = None
    top_n_tokens: Count = None
    grammar: dict[str, Any] | None = None  # refused: not there yet
    adapter_id: str | None = None  # refused: not there yet


class GenerateRequest(Struct):
    inputs: Text
    parameters: GenerateParameters | None = None


class CompatGenerateRequest(Struct):
    """What / and /invocations take."""

    inputs: Text
    parameters: GenerateParameters | None = None
    stream: bool = False


class Token(Struct):
    id: int
    text: str
    logprob: float | None
    special: bool


class PrefillToken(Struct):
    id: int
    text: str
    logprob: float | None  # the first token of a prompt has none


class BestOfSequence(Struct):
    generated_text: str
    finish_reason: str
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: list[list[Token]] | UnsetType = UNSET


class Details(Struct):
    finish_reason: str
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[Token]
    best_of_sequences: list[BestOfSequence] | UnsetType = UNSET
    top_tokens: list[list[Token]] | UnsetType = UNSET


class GenerateResponse(Struct):
    generated_text: str
    details: Details | UnsetType = UNSET


class StreamDetails(Struct):
    finish_reason: str
    generated_tokens: int
    seed: int | None
    input_length: int


class StreamResponse(Struct):
    index: int  # counts from 1
    token: Token
    top_tokens: list[Token] | UnsetType = UNSET
    generated_text: str | None = None
    details: StreamDetails | None = None


class SimpleToken(Struct):
    """A token of a prompt, and its place in the text: bytes [start, stop) of its UTF-8."""

    id: int
    text: str
    start: int
    stop: int


class InvocationRequest(Struct):
    """Which of the three has a value says which kind of request it is."""

    inputs: Raw | UnsetType = UNSET
    messages: Raw | UnsetType = UNSET
    prompt: Raw | UnsetType = UNSET


_INSTANCE = {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("GenerateRequest", "ChatRequest")]}


class VertexRequest(Struct):
    instances: Annotated[list[Raw], Meta(extra_json_schema={"items": _INSTANCE})]


class VertexResponse(Struct):
    predictions: list[str]

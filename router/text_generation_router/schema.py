"""The JSON bodies of the HTTP API: what comes in, what goes out, field by field.

In: bytes from a client, decoded and checked by their types. Out: bytes for a client. Bodies stop here: nothing behind
the handlers sees one. Knows nothing of limits, which are validation's, and of how a body travels.
"""

from typing import Annotated, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from text_generation_router.errors import MalformedBody, ValidationError

Body = TypeVar("Body", bound=Struct)
Int32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]


class GenerateParameters(Struct):
    """All parameters of the original, so that each is checked for its type even where its use is still to come."""

    best_of: int | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: Int32 | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool = False
    max_new_tokens: int | None = None
    return_full_text: bool | None = None
    stop: list[str] = []
    truncate: int | None = None
    watermark: bool = False
    details: bool = False
    decoder_input_details: bool = False
    seed: int | None = None
    top_n_tokens: int | None = None
    grammar: dict[str, object] | None = None
    adapter_id: str | None = None


class GenerateRequest(Struct):
    inputs: str
    parameters: GenerateParameters | None = None


class Token(Struct):
    id: int
    text: str
    logprob: float  # not a number and infinities are written as null
    special: bool


class PrefillToken(Struct):
    id: int
    text: str
    logprob: float | None


class Details(Struct):
    finish_reason: str
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[Token]


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
    generated_text: str | None = None
    details: StreamDetails | None = None


class Info(Struct):
    model_id: str
    model_type: str
    model_dtype: str
    model_device_type: str
    model_quantize: str | None
    num_shard: int
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    validation_workers: int
    max_client_batch_size: int
    router: str
    version: str
    model_sha: str | None = None
    model_pipeline_tag: str | None = None
    sha: str | None = None
    docker_label: str | None = None


class ErrorBody(Struct):
    error: str
    error_type: str


def decode(body: bytes, body_type: type[Body]) -> Body:
    """Raises: MalformedBody for what is no JSON, ValidationError naming the field for what is of another type."""
    try:
        return msgspec.json.decode(body, type=body_type)
    except msgspec.ValidationError as error:
        raise ValidationError(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedBody(f"The body is not valid JSON: {error}") from error


def encode(body: Struct) -> bytes:
    return _encoder.encode(body)


_encoder = msgspec.json.Encoder()

"""Bodies: bytes from a client to a message type and back, and the two shapes that errors have.

In: bytes, decoded and checked by their types. Out: bytes for a client. Bodies stop here: nothing behind the handlers sees
one. Knows nothing of limits, which are validation's, and of how a body travels.
"""

from collections.abc import Iterable
from typing import TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from text_generation_router.errors import MalformedBody, RequestError, ValidationError

Body = TypeVar("Body", bound=Struct)


class ErrorBody(Struct):
    error: str
    error_type: str


class OpenAIError(Struct):
    message: str
    type: str
    code: str
    param: str | None = None


class OpenAIErrorBody(Struct):
    error: OpenAIError
    error_type: str  # what the original's clients look for


def decode(body: bytes, body_type: type[Body]) -> Body:
    """Raises: MalformedBody for what is no JSON, ValidationError naming the field for what is of another type."""
    try:
        return msgspec.json.decode(body, type=body_type)
    except msgspec.ValidationError as error:
        raise ValidationError(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedBody(f"The body is not valid JSON: {error}") from error


def is_given(field: Raw | UnsetType) -> bool:
    """Whether a field that is not decoded yet is there, and not null."""
    return field is not UNSET and bytes(field) != b"null"


def encode(body: object) -> bytes:
    """Not a number and infinities are written as null."""
    return _encoder.encode(body)


def native_error(error: RequestError) -> ErrorBody:
    return ErrorBody(str(error), error.error_type)


def openai_error(error: RequestError) -> OpenAIErrorBody:
    kind = "invalid_request_error" if 400 <= error.status < 424 else error.error_type
    return OpenAIErrorBody(OpenAIError(str(error), kind, error.error_type), error.error_type)


def json_schemas(types: Iterable[object]) -> tuple[list[dict[str, object]], dict[str, object]]:
    """JSON Schemas of the types, in order, and the named parts that they refer to."""
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    return list(schemas), components


_encoder = msgspec.json.Encoder()

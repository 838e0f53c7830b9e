"""Field types that tell the OpenAPI document their range. Validation checks it, in the words that clients know.

A leaf of the schema package: numbers as types.
"""

from typing import Annotated, Any

from msgspec import Meta


def _in_document(**json_schema: Any) -> Meta:
    return Meta(extra_json_schema=json_schema)


Text = Annotated[str, _in_document(minLength=1)]
Positive = Annotated[float | None, _in_document(exclusiveMinimum=0)]
Fraction = Annotated[float | None, _in_document(exclusiveMinimum=0, exclusiveMaximum=1)]
FractionOrOne = Annotated[float | None, _in_document(exclusiveMinimum=0, maximum=1)]
Temperature = Annotated[float | None, _in_document(minimum=0)]
Penalty = Annotated[float | None, _in_document(minimum=-2, maximum=2)]
Count = Annotated[int | None, _in_document(minimum=0)]
PositiveCount = Annotated[int | None, _in_document(minimum=1)]
Choices = Annotated[int | None, _in_document(minimum=1, maximum=128)]
TopLogprobs = Annotated[int | None, _in_document(minimum=0, maximum=20)]
Seed = Annotated[int | None, _in_document(minimum=0, maximum=2**64 - 1)]
TokenId = Annotated[int, _in_document(minimum=0)]

"""Everything that this router refuses or fails with, each with the HTTP status and the `error_type` that tell it.

RouterError
├── ConfigurationError       the router cannot start as it was told to: one line, exit code 1
└── RequestError             status and error_type, sent as {"error": message, "error_type": error_type}
    ├── MalformedBody        400 malformed_body
    ├── Unauthorized         401 unauthorized
    ├── RequestTimeout       408 request_timeout
    ├── PayloadTooLarge      413 payload_too_large
    ├── ValidationError      422 validation
    ├── TemplateError        422 template_error
    ├── ToolError            422 tool_error
    ├── SuffixNotSupported   422 suffix not supported
    ├── BatchSizeExceeded    422 batch size exceeded
    ├── GenerationFailed     424 generation
    ├── Overloaded           429 overloaded
    ├── InternalError        500 internal
    ├── Unhealthy            503 healthcheck
    └── NotReady             503 not_ready

A leaf: importable from anywhere in the router, knows nothing of HTTP beyond the numbers.
"""


class RouterError(Exception):
    """Root of what the router itself raises."""


class ConfigurationError(RouterError):
    """What a person has to change before the router can start."""


class RequestError(RouterError):
    """An answer to a client. `str(error)` is its message, never a stack trace."""

    status = 500
    error_type = "internal"


class MalformedBody(RequestError):
    status = 400
    error_type = "malformed_body"


class Unauthorized(RequestError):
    status = 401
    error_type = "unauthorized"

    def __init__(self) -> None:
        super().__init__("Give a valid key, as `Authorization: Bearer KEY`")


class RequestTimeout(RequestError):
    status = 408
    error_type = "request_timeout"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"The request body did not come within {seconds:g} seconds")


class PayloadTooLarge(RequestError):
    status = 413
    error_type = "payload_too_large"

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"The request body must have at most {max_bytes} bytes")


class ValidationError(RequestError):
    status = 422
    error_type = "validation"

    def __init__(self, reason: str) -> None:
        super().__init__(f"Input validation error: {reason}")


class TemplateError(RequestError):
    status = 422
    error_type = "template_error"

    def __init__(self, reason: str) -> None:
        super().__init__(f"Template error: {reason}")


class ToolError(RequestError):
    status = 422
    error_type = "tool_error"

    def __init__(self, reason: str) -> None:
        super().__init__(f"Tool error: {reason}")


class SuffixNotSupported(RequestError):
    status = 422
    error_type = "suffix not supported"

    def __init__(self) -> None:
        super().__init__("Suffix is not supported and can be achieved by preprocessing the prompt.")


class BatchSizeExceeded(RequestError):
    status = 422
    error_type = "batch size exceeded"

    def __init__(self, maximum: int) -> None:
        super().__init__(f"Number of prompts exceeds the maximum allowed batch size of {maximum}")


class GenerationFailed(RequestError):
    status = 424
    error_type = "generation"

    def __init__(self, reason: str) -> None:
        super().__init__(f"Request failed during generation: {reason}")


class Overloaded(RequestError):
    status = 429
    error_type = "overloaded"

    def __init__(self) -> None:
        super().__init__("Model is overloaded")


class InternalError(RequestError):
    """Our bug. The client learns that much, the log gets the traceback."""

    def __init__(self) -> None:
        super().__init__("Internal server error")


class Unhealthy(RequestError):
    status = 503
    error_type = "healthcheck"

    def __init__(self, waits_for: str) -> None:
        super().__init__(f"unhealthy: {waits_for}")


class NotReady(RequestError):
    status = 503
    error_type = "not_ready"

    def __init__(self, waits_for: str) -> None:
        super().__init__(f"The model cannot answer yet: {waits_for}")

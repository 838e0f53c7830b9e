import pytest

from text_generation_router import errors


@pytest.mark.parametrize(
    ("error", "status", "error_type", "message"),
    [
        (errors.MalformedBody("no"), 400, "malformed_body", "no"),
        (errors.Unauthorized(), 401, "unauthorized", "Give a valid key, as `Authorization: Bearer KEY`"),
        (errors.RequestTimeout(60.0), 408, "request_timeout", "The request body did not come within 60 seconds"),
        (errors.PayloadTooLarge(5), 413, "payload_too_large", "The request body must have at most 5 bytes"),
        (errors.ValidationError("`x` is bad"), 422, "validation", "Input validation error: `x` is bad"),
        (errors.TemplateError("no"), 422, "template_error", "Template error: no"),
        (errors.ToolError("no"), 422, "tool_error", "Tool error: no"),
        (
            errors.SuffixNotSupported(),
            422,
            "suffix not supported",
            "Suffix is not supported and can be achieved by preprocessing the prompt.",
        ),
        (
            errors.BatchSizeExceeded(4),
            422,
            "batch size exceeded",
            "Number of prompts exceeds the maximum allowed batch size of 4",
        ),
        (errors.GenerationFailed("oom"), 424, "generation", "Request failed during generation: oom"),
        (errors.Overloaded(), 429, "overloaded", "Model is overloaded"),
        (errors.InternalError(), 500, "internal", "Internal server error"),
        (errors.Unhealthy("waiting for shards"), 503, "healthcheck", "unhealthy: waiting for shards"),
        (errors.NotReady("waiting for shards"), 503, "not_ready", "The model cannot answer yet: waiting for shards"),
    ],
)
def test_each_error_carries_the_status_type_and_message_that_clients_know(error, status, error_type, message):
    assert (error.status, error.error_type, str(error)) == (status, error_type, message)


def test_every_answer_to_a_client_has_a_row_above_and_in_the_drawing():
    classes = errors.RequestError.__subclasses__()
    assert len(classes) == 14
    assert all(f"{cls.__name__} " in errors.__doc__ and str(cls.status) in errors.__doc__ for cls in classes)


def test_a_configuration_error_is_never_an_answer_to_a_client():
    assert not issubclass(errors.ConfigurationError, errors.RequestError)

"""Validation: a GenerateRequest as a client wrote it becomes a Request that the engine can run.

In: a decoded body, the limits that hold. Out: token ids and checked parameters, defaults filled in; or a
ValidationError in the words that clients of Text Generation Inference know. Checks come in the original's order.
Knows nothing of queues and shards.
"""

import math
import secrets
import struct

from text_generation_router.engine import Limits
from text_generation_router.errors import ValidationError
from text_generation_router.schema import GenerateParameters, GenerateRequest
from text_generation_router.sequence import Request, SamplingParameters
from text_generation_router.tokenizer import Tokenizer

_MAX_SEED = 2**64 - 1


class Validation:
    def __init__(self, tokenizer: Tokenizer, max_stop_sequences: int) -> None:
        self._tokenizer = tokenizer
        self._max_stop_sequences = max_stop_sequences

    async def check(self, body: GenerateRequest, limits: Limits, *, streamed: bool) -> Request:
        """Raises: ValidationError.

        No `parameters` at all means greedy, as `{}` does: an answer is random only where a client asked for it. (In the
        original the two differ: leaving them out samples.)
        """
        parameters = body.parameters or GenerateParameters()
        _refuse_in_streams(parameters, streamed)
        sampling = _sampling(parameters)
        _check_max_new_tokens(parameters)
        self._check_stop(parameters.stop)
        _refuse_unsupported(parameters)
        token_ids = await self._encode(body.inputs, parameters.truncate, limits)
        max_new_tokens = _max_new_tokens(len(token_ids), parameters.max_new_tokens, limits)
        return Request(token_ids, max_new_tokens, sampling, tuple(parameters.stop))

    def _check_stop(self, stop: list[str]) -> None:
        maximum = self._max_stop_sequences
        if len(stop) > maximum:
            raise ValidationError(f"`stop` supports up to {maximum} stop sequences. Given: {len(stop)}")
        if "" in stop:
            raise ValidationError("`stop` sequences cannot be empty")

    async def _encode(self, inputs: str, truncate: int | None, limits: Limits) -> list[int]:
        if not inputs:
            raise ValidationError("`inputs` cannot be empty")
        max_tokens = limits.max_input_tokens
        if truncate is not None and not 0 < truncate <= max_tokens:
            raise ValidationError(f"`truncate` must be strictly positive and less than {max_tokens}. Given: {truncate}")
        try:
            token_ids = await self._tokenizer.encode(inputs)
        except (TypeError, ValueError) as error:
            raise ValidationError(f"tokenizer error {error}") from error
        if not token_ids:
            raise ValidationError("`inputs` cannot be empty")
        return token_ids if truncate is None else token_ids[-truncate:]


def _refuse_in_streams(parameters: GenerateParameters, streamed: bool) -> None:
    if streamed and (parameters.best_of or 1) != 1:
        raise ValidationError("`best_of` != 1 is not supported when streaming tokens")
    if streamed and parameters.decoder_input_details:
        raise ValidationError("`decoder_input_details` == true is not supported when streaming tokens")


def _sampling(parameters: GenerateParameters) -> SamplingParameters:
    """Any of temperature, top_k and top_p that changes something asks for sampling, as `do_sample` does."""
    temperature = _positive("temperature", parameters.temperature)
    repetition_penalty = _positive("repetition_penalty", parameters.repetition_penalty)
    if not -2 <= (parameters.frequency_penalty or 0) <= 2:
        raise ValidationError("`frequency_penalty` must be >= -2.0 and <= 2.0")
    top_p = _fraction("top_p", parameters.top_p)
    _fraction("typical_p", parameters.typical_p)
    if parameters.top_k is not None and parameters.top_k <= 0:
        raise ValidationError("`top_k` must be strictly positive")
    return SamplingParameters(
        do_sample=parameters.do_sample or temperature != 1.0 or parameters.top_k is not None or top_p is not None,
        temperature=temperature,
        top_k=parameters.top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=_seed(parameters.seed),
    )


def _positive(name: str, value: float | None) -> float:
    value = 1.0 if value is None else _to_float32(value)
    if not value > 0:
        raise ValidationError(f"`{name}` must be strictly positive")
    if math.isinf(value):
        raise ValidationError(f"`{name}` must be finite")
    return value


def _fraction(name: str, value: float | None) -> float | None:
    value = None if value is None else _to_float32(value)
    if value is not None and not 0 < value < 1:
        raise ValidationError(f"`{name}` must be > 0.0 and < 1.0")
    return value


def _to_float32(value: float) -> float:
    """As the shards will see it: what is too small becomes 0 and what is too large infinite, here and not there."""
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def _seed(seed: int | None) -> int:
    if seed is None:
        return secrets.randbits(63)  # a number that also clients with signed integers can send back
    if not 0 <= seed <= _MAX_SEED:
        raise ValidationError(f"`seed` must be >= 0 and <= {_MAX_SEED}. Given: {seed}")
    return seed


def _check_max_new_tokens(parameters: GenerateParameters) -> None:
    if parameters.max_new_tokens is not None and parameters.max_new_tokens <= 0:
        raise ValidationError("`max_new_tokens` must be strictly positive")


def _refuse_unsupported(parameters: GenerateParameters) -> None:
    """A parameter that would change the answer is refused where it cannot be honoured; its neutral values pass."""
    asked = {
        "best_of": (parameters.best_of or 1) != 1,
        "typical_p": parameters.typical_p is not None,
        "frequency_penalty": bool(parameters.frequency_penalty),
        "watermark": parameters.watermark,
        "decoder_input_details": parameters.decoder_input_details,
        "top_n_tokens": bool(parameters.top_n_tokens),
        "grammar": parameters.grammar is not None,
        "adapter_id": parameters.adapter_id is not None,
    }
    for name, is_asked in asked.items():
        if is_asked:
            raise ValidationError(f"`{name}` is not supported by this server yet")


def _max_new_tokens(num_input_tokens: int, asked: int | None, limits: Limits) -> int:
    if asked is not None and num_input_tokens + asked > limits.max_total_tokens:
        raise ValidationError(
            f"`inputs` tokens + `max_new_tokens` must be <= {limits.max_total_tokens}. "
            f"Given: {num_input_tokens} `inputs` tokens and {asked} `max_new_tokens`"
        )
    maximum = limits.max_input_tokens
    if num_input_tokens > maximum:
        raise ValidationError(f"`inputs` must have less than {maximum} tokens. Given: {num_input_tokens}")
    return limits.max_total_tokens - num_input_tokens if asked is None else asked

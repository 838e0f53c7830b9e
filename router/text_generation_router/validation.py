"""Validation: what a client asked for becomes a Request that the engine can run.

In: a prompt, parameters as the client wrote them, the limits that hold. Out: token ids and checked parameters, defaults
filled in; or a ValidationError in the words that clients of Text Generation Inference know. Checks come in the original's
order. Knows nothing of queues and shards.
"""

import dataclasses
import math
import random
import struct
from collections.abc import Collection, Mapping

from text_generation_router.config import RouterConfig
from text_generation_router.errors import ValidationError
from text_generation_router.limits import Limits
from text_generation_router.schema.generate import GenerateParameters
from text_generation_router.sequence import Request, SamplingParameters
from text_generation_router.tokenizer import Tokenizer

OPENAI_MAX_TOP_LOGPROBS = 20
OPENAI_MAX_LOGIT_BIAS = 100.0
_MAX_SEED = 2**64 - 1


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be continued: a text, or token ids that the client made itself."""

    text: str = ""
    token_ids: list[int] | None = None
    add_special_tokens: bool = True  # a chat template has put its own


@dataclasses.dataclass(frozen=True, slots=True)
class OpenAIParameters:
    """What OpenAI's routes can ask for beyond the native ones. With them, stop sequences are cut off the text."""

    presence_penalty: float | None = None
    logit_bias: Mapping[str, float] = dataclasses.field(default_factory=dict)  # by token id, as JSON has it


class Validation:
    def __init__(self, tokenizer: Tokenizer, config: RouterConfig) -> None:
        self._tokenizer = tokenizer
        self._max_stop_sequences = config.max_stop_sequences
        self._max_best_of = config.max_best_of
        self._max_top_n_tokens = config.max_top_n_tokens
        # Seeds are no secrets, and to ask the system for every one takes a tenth of a short request's time.
        self._seeds = random.Random()

    async def check(
        self,
        prompt: Prompt,
        parameters: GenerateParameters,
        limits: Limits,
        openai: OpenAIParameters | None = None,
        *,
        streamed: bool = False,
    ) -> Request:
        """Raises: ValidationError."""
        self._check_best_of(parameters.best_of)
        _refuse_in_streams(parameters, streamed)
        sampling = _sampling(parameters, self._seed(parameters.seed))
        if openai:
            sampling = _with_openai(sampling, openai, limits.vocab_size)
        _check_max_new_tokens(parameters)
        self._check_stop(parameters.stop)
        if parameters.seed is not None and num_answers(parameters) > 1:
            raise ValidationError("`seed` must not be set when `best_of` > 1")
        max_top_tokens = OPENAI_MAX_TOP_LOGPROBS if openai else self._max_top_n_tokens
        num_top_tokens = _num_top_tokens(parameters.top_n_tokens, max_top_tokens)
        token_ids = await self._token_ids(prompt, parameters.truncate, limits)
        max_new_tokens = _max_new_tokens(len(token_ids), parameters.max_new_tokens, limits)
        _refuse_unsupported(parameters)
        start_token_id = limits.decoder_start_token_id
        if parameters.decoder_input_details and openai and start_token_id is not None:
            raise ValidationError("`echo` with `logprobs` is not supported: this model reads a prompt, and does not say it")
        return Request(
            token_ids,
            max_new_tokens,
            sampling,
            stop=tuple(parameters.stop),
            keep_stop=openai is None,
            num_top_tokens=num_top_tokens,
            prompt_logprobs=parameters.decoder_input_details and start_token_id is None,
            shown_start_token_id=start_token_id if parameters.decoder_input_details else None,
        )

    def _check_best_of(self, best_of: int | None) -> None:
        maximum = self._max_best_of
        if maximum == 1 and (best_of or 1) != 1:
            raise ValidationError("`best_of` != 1 is not allowed for this endpoint")
        if best_of is not None and not 0 <= best_of <= maximum:
            raise ValidationError(f"`best_of` must be > 0 and <= {maximum}. Given: {best_of}")

    def _check_stop(self, stop: list[str]) -> None:
        maximum = self._max_stop_sequences
        if len(stop) > maximum:
            raise ValidationError(f"`stop` supports up to {maximum} stop sequences. Given: {len(stop)}")
        if "" in stop:
            raise ValidationError("`stop` sequences cannot be empty")

    def _seed(self, seed: int | None) -> int:
        if seed is None:
            return self._seeds.getrandbits(63)  # a number that also clients with signed integers can send back
        if not 0 <= seed <= _MAX_SEED:
            raise ValidationError(f"`seed` must be >= 0 and <= {_MAX_SEED}. Given: {seed}")
        return seed

    async def _token_ids(self, prompt: Prompt, truncate: int | None, limits: Limits) -> list[int]:
        if not prompt.text and not prompt.token_ids:
            raise ValidationError("`inputs` cannot be empty")
        maximum = limits.max_input_tokens
        if truncate is not None and not 0 < truncate <= maximum:
            raise ValidationError(f"`truncate` must be strictly positive and less than {maximum}. Given: {truncate}")
        token_ids = await self._encode(prompt) if prompt.token_ids is None else prompt.token_ids
        if not token_ids:
            raise ValidationError("`inputs` cannot be empty")
        _check_token_ids("`prompt`", token_ids, limits.vocab_size)
        return token_ids if truncate is None else token_ids[-truncate:]

    async def _encode(self, prompt: Prompt) -> list[int]:
        try:
            return await self._tokenizer.encode(prompt.text, prompt.add_special_tokens)
        except (TypeError, ValueError) as error:
            raise ValidationError(f"tokenizer error {error}") from error


def num_answers(parameters: GenerateParameters) -> int:
    """How many answers the best one is chosen from."""
    return parameters.best_of or 1


def copies(request: Request, number: int) -> list[Request]:
    """The same request `number` times, each with a seed of its own that follows from the first one's."""
    seeds = [(request.sampling.seed + index) & _MAX_SEED for index in range(number)]
    return [
        dataclasses.replace(request, sampling=dataclasses.replace(request.sampling, seed=seed)) if index else request
        for index, seed in enumerate(seeds)
    ]


def _refuse_in_streams(parameters: GenerateParameters, streamed: bool) -> None:
    if streamed and num_answers(parameters) != 1:
        raise ValidationError("`best_of` != 1 is not supported when streaming tokens")
    if streamed and parameters.decoder_input_details:
        raise ValidationError("`decoder_input_details` == true is not supported when streaming tokens")


def _sampling(parameters: GenerateParameters, seed: int) -> SamplingParameters:
    """Any of temperature, top_k, top_p and typical_p that changes something asks for sampling, as `do_sample` does."""
    filters = (parameters.top_k, parameters.top_p, parameters.typical_p)
    samples = parameters.do_sample or parameters.temperature not in (None, 1) or any(given is not None for given in filters)
    if num_answers(parameters) > 1 and not samples:
        raise ValidationError("you must use sampling when `best_of` is > 1")
    temperature = _positive("temperature", parameters.temperature)
    repetition_penalty = _positive("repetition_penalty", parameters.repetition_penalty)
    frequency_penalty = _penalty("frequency_penalty", parameters.frequency_penalty)
    top_p = _fraction("top_p", parameters.top_p)
    typical_p = _fraction("typical_p", parameters.typical_p)
    if parameters.top_k is not None and parameters.top_k <= 0:
        raise ValidationError("`top_k` must be strictly positive")
    return SamplingParameters(
        do_sample=samples,
        temperature=temperature,
        top_k=parameters.top_k,
        top_p=top_p,
        typical_p=typical_p,
        repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty,
        watermark=parameters.watermark,
        seed=seed if samples else 0,
    )


def _with_openai(sampling: SamplingParameters, openai: OpenAIParameters, vocab_size: int) -> SamplingParameters:
    presence_penalty = _penalty("presence_penalty", openai.presence_penalty)
    logit_bias = {_bias_token_id(name): value for name, value in openai.logit_bias.items()}
    _check_token_ids("`logit_bias`", logit_bias, vocab_size)
    if not all(-OPENAI_MAX_LOGIT_BIAS <= value <= OPENAI_MAX_LOGIT_BIAS for value in logit_bias.values()):
        raise ValidationError("`logit_bias` must be >= -100 and <= 100")
    return dataclasses.replace(sampling, presence_penalty=presence_penalty, logit_bias=logit_bias)


def _bias_token_id(name: str) -> int:
    if not (name.isascii() and name.isdecimal() and len(name) <= 20):
        raise ValidationError(f"`logit_bias` must map token ids to numbers. Given: {name[:40]!r}")
    return int(name)


def _check_token_ids(name: str, token_ids: Collection[int], vocab_size: int) -> None:
    if not 0 <= min(token_ids, default=0) <= max(token_ids, default=0) < vocab_size:
        raise ValidationError(f"{name} token ids must be >= 0 and < {vocab_size}")


def _positive(name: str, value: float | None) -> float:
    value = 1.0 if value is None else _to_float32(value)
    if not value > 0:
        raise ValidationError(f"`{name}` must be strictly positive")
    if math.isinf(value):
        raise ValidationError(f"`{name}` must be finite")
    return value


def _penalty(name: str, value: float | None) -> float:
    if not -2 <= (value or 0) <= 2:
        raise ValidationError(f"`{name}` must be >= -2.0 and <= 2.0")
    return value or 0.0


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


def _num_top_tokens(asked: int | None, maximum: int) -> int:
    if asked is not None and not 0 <= asked <= maximum:
        raise ValidationError(f"`top_n_tokens` must be >= 0 and <= {maximum}. Given: {asked}")
    return asked or 0


def _check_max_new_tokens(parameters: GenerateParameters) -> None:
    if parameters.max_new_tokens is not None and parameters.max_new_tokens <= 0:
        raise ValidationError("`max_new_tokens` must be strictly positive")


def _refuse_unsupported(parameters: GenerateParameters) -> None:
    """What would change the answer and cannot be honoured is refused, rather than passed over in silence."""
    if parameters.grammar is not None:
        raise ValidationError("grammar is not supported")
    if parameters.adapter_id is not None:
        raise ValidationError("`adapter_id` is not supported by this server: it serves no adapters")


def _max_new_tokens(num_input_tokens: int, asked: int | None, limits: Limits) -> int:
    if asked is not None and num_input_tokens + asked > limits.max_total_tokens:
        raise ValidationError(
            f"`inputs` tokens + `max_new_tokens` must be <= {limits.max_total_tokens}. "
            f"Given: {num_input_tokens} `inputs` tokens and {asked} `max_new_tokens`"
        )
    maximum = limits.max_input_tokens
    if num_input_tokens > maximum:
        raise ValidationError(f"`inputs` must have less than {maximum} tokens. Given: {num_input_tokens}")
    most = min(limits.max_total_tokens - num_input_tokens, limits.max_new_tokens or limits.max_total_tokens)
    if asked is not None and asked > most:
        raise ValidationError(f"`max_new_tokens` must be <= {most}. Given: {asked}")
    return most if asked is None else asked

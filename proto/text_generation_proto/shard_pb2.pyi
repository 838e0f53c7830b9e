from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("model_id", "model_type", "dtype", "device", "quantize", "rank", "world_size", "shard_urls", "block_size", "num_blocks", "max_positions", "vocab_size", "eos_token_ids", "weight_bytes", "weight_bytes_read", "peak_loading_bytes", "version", "max_batch_tokens", "timings", "chunked_prefill", "prefix_cache", "decoder_start_token_id", "max_new_tokens")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_TYPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    QUANTIZE_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    SHARD_URLS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MAX_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_READ_FIELD_NUMBER: _ClassVar[int]
    PEAK_LOADING_BYTES_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    CHUNKED_PREFILL_FIELD_NUMBER: _ClassVar[int]
    PREFIX_CACHE_FIELD_NUMBER: _ClassVar[int]
    DECODER_START_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    model_type: str
    dtype: str
    device: str
    quantize: str
    rank: int
    world_size: int
    shard_urls: _containers.RepeatedScalarFieldContainer[str]
    block_size: int
    num_blocks: int
    max_positions: int
    vocab_size: int
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    weight_bytes: int
    weight_bytes_read: int
    peak_loading_bytes: int
    version: str
    max_batch_tokens: int
    timings: Timings
    chunked_prefill: bool
    prefix_cache: bool
    decoder_start_token_id: int
    max_new_tokens: int
    def __init__(self, model_id: _Optional[str] = ..., model_type: _Optional[str] = ..., dtype: _Optional[str] = ..., device: _Optional[str] = ..., quantize: _Optional[str] = ..., rank: _Optional[int] = ..., world_size: _Optional[int] = ..., shard_urls: _Optional[_Iterable[str]] = ..., block_size: _Optional[int] = ..., num_blocks: _Optional[int] = ..., max_positions: _Optional[int] = ..., vocab_size: _Optional[int] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., weight_bytes: _Optional[int] = ..., weight_bytes_read: _Optional[int] = ..., peak_loading_bytes: _Optional[int] = ..., version: _Optional[str] = ..., max_batch_tokens: _Optional[int] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., chunked_prefill: _Optional[bool] = ..., prefix_cache: _Optional[bool] = ..., decoder_start_token_id: _Optional[int] = ..., max_new_tokens: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("num_steps", "step_micros", "wait_micros")
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_MICROS_FIELD_NUMBER: _ClassVar[int]
    WAIT_MICROS_FIELD_NUMBER: _ClassVar[int]
    num_steps: int
    step_micros: int
    wait_micros: int
    def __init__(self, num_steps: _Optional[int] = ..., step_micros: _Optional[int] = ..., wait_micros: _Optional[int] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("id", "drop", "add", "work", "num_iterations", "num_speculative")
    ID_FIELD_NUMBER: _ClassVar[int]
    DROP_FIELD_NUMBER: _ClassVar[int]
    ADD_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    NUM_ITERATIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_SPECULATIVE_FIELD_NUMBER: _ClassVar[int]
    id: int
    drop: _containers.RepeatedScalarFieldContainer[int]
    add: _containers.RepeatedCompositeFieldContainer[NewSequence]
    work: _containers.RepeatedCompositeFieldContainer[Work]
    num_iterations: int
    num_speculative: int
    def __init__(self, id: _Optional[int] = ..., drop: _Optional[_Iterable[int]] = ..., add: _Optional[_Iterable[_Union[NewSequence, _Mapping]]] = ..., work: _Optional[_Iterable[_Union[Work, _Mapping]]] = ..., num_iterations: _Optional[int] = ..., num_speculative: _Optional[int] = ...) -> None: ...

class NewSequence(_message.Message):
    __slots__ = ("id", "token_ids", "sampling", "num_prompt_tokens", "num_top_tokens", "prompt_logprobs", "max_new_tokens")
    ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    id: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: SamplingParameters
    num_prompt_tokens: int
    num_top_tokens: int
    prompt_logprobs: bool
    max_new_tokens: int
    def __init__(self, id: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[SamplingParameters, _Mapping]] = ..., num_prompt_tokens: _Optional[int] = ..., num_top_tokens: _Optional[int] = ..., prompt_logprobs: _Optional[bool] = ..., max_new_tokens: _Optional[int] = ...) -> None: ...

class SamplingParameters(_message.Message):
    __slots__ = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "seed", "frequency_penalty", "presence_penalty", "typical_p", "logit_bias", "watermark")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    DO_SAMPLE_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    TYPICAL_P_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    WATERMARK_FIELD_NUMBER: _ClassVar[int]
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int
    frequency_penalty: float
    presence_penalty: float
    typical_p: float
    logit_bias: _containers.ScalarMap[int, float]
    watermark: bool
    def __init__(self, do_sample: _Optional[bool] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., seed: _Optional[int] = ..., frequency_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., typical_p: _Optional[float] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., watermark: _Optional[bool] = ...) -> None: ...

class Work(_message.Message):
    __slots__ = ("sequence_id", "start", "length", "block_ids", "sample")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    BLOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    start: int
    length: int
    block_ids: _containers.RepeatedScalarFieldContainer[int]
    sample: bool
    def __init__(self, sequence_id: _Optional[int] = ..., start: _Optional[int] = ..., length: _Optional[int] = ..., block_ids: _Optional[_Iterable[int]] = ..., sample: _Optional[bool] = ...) -> None: ...

class StepResult(_message.Message):
    __slots__ = ("id", "tokens", "error", "prompts", "forward_micros", "sample_micros")
    ID_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    FORWARD_MICROS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_MICROS_FIELD_NUMBER: _ClassVar[int]
    id: int
    tokens: _containers.RepeatedCompositeFieldContainer[Token]
    error: str
    prompts: _containers.RepeatedCompositeFieldContainer[PromptLogprobs]
    forward_micros: int
    sample_micros: int
    def __init__(self, id: _Optional[int] = ..., tokens: _Optional[_Iterable[_Union[Token, _Mapping]]] = ..., error: _Optional[str] = ..., prompts: _Optional[_Iterable[_Union[PromptLogprobs, _Mapping]]] = ..., forward_micros: _Optional[int] = ..., sample_micros: _Optional[int] = ...) -> None: ...

class PromptLogprobs(_message.Message):
    __slots__ = ("sequence_id", "start", "logprobs", "top_token_ids", "top_logprobs")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    start: int
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    top_token_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, sequence_id: _Optional[int] = ..., start: _Optional[int] = ..., logprobs: _Optional[_Iterable[float]] = ..., top_token_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("sequence_id", "token_id", "logprob", "top_token_ids", "top_logprobs")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    token_id: int
    logprob: float
    top_token_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, sequence_id: _Optional[int] = ..., token_id: _Optional[int] = ..., logprob: _Optional[float] = ..., top_token_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("inputs", "sampling", "max_new_tokens", "stop")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedScalarFieldContainer[str]
    sampling: SamplingParameters
    max_new_tokens: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, inputs: _Optional[_Iterable[str]] = ..., sampling: _Optional[_Union[SamplingParameters, _Mapping]] = ..., max_new_tokens: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("index", "token_id", "text", "logprob", "finish_reason", "generated_text")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TEXT_FIELD_NUMBER: _ClassVar[int]
    index: int
    token_id: int
    text: str
    logprob: float
    finish_reason: str
    generated_text: str
    def __init__(self, index: _Optional[int] = ..., token_id: _Optional[int] = ..., text: _Optional[str] = ..., logprob: _Optional[float] = ..., finish_reason: _Optional[str] = ..., generated_text: _Optional[str] = ...) -> None: ...

"""RouterConfig: everything a router can be told, with its flags, environment variables and limits.

In: a command line. Out: one frozen object, handed down by constructors. Standard library only, so that the launcher can
build it too. Knows nothing of the model: what the shards say (blocks, positions) is found out later and kept elsewhere.
"""

import dataclasses

from text_generation_proto.flags import flag

_AT_LEAST_ONE = (
    *("max_concurrent_requests", "validation_workers", "max_batch_prefill_tokens", "max_total_tokens"),
    *("max_batch_size", "max_best_of", "max_client_batch_size", "payload_limit"),
)


@dataclasses.dataclass(frozen=True, slots=True)
class RouterConfig:
    tokenizer_path: str | None = flag(
        None,
        help="Folder that holds the model's tokenizer.json. It must be the tokenizer of the model that the shards serve: "
        "another one gives text without sense. Unset: the folder that --launch-status-path names in the end.",
    )
    launch_status_path: str | None = flag(
        None,
        help="File in which a launcher says how far it is, for /health to pass on, and where the model's folder is once it "
        "is there. Unset: there is no launcher; then --tokenizer-path must be given.",
    )
    tokenizer_config_path: str | None = flag(
        None,
        help="File to read the chat template and the special tokens from. Unset: the tokenizer_config.json of the model.",
    )
    shard_uds_path: str = flag(
        "/tmp/text-generation-server",
        help="Prefix of the shards' Unix sockets; rank 0 listens on PREFIX-0 and names the others.",
    )
    model_id: str | None = flag(None, help="Name reported by /info. Unset: the name that the shards report.")
    hostname: str = flag(
        "0.0.0.0",
        env="ROUTER_HOSTNAME",
        help="Address to listen on. 127.0.0.1 keeps other machines out; 0.0.0.0 lets every network in.",
    )
    port: int = flag(3000, short="-p", help="TCP port of the HTTP server.")
    max_concurrent_requests: int = flag(
        128,
        help="Requests in flight before further ones get 429 at once. Too small refuses work the shards could do; too "
        "large lets requests wait in the queue for longer than their clients do.",
    )
    max_input_tokens: int | None = flag(
        None, help="Longest prompt, in tokens. Unset: max-total-tokens - 1. Longer prompts get 422."
    )
    max_total_tokens: int | None = flag(
        None,
        help="Longest prompt and output together, in tokens. Unset: what the model and the KV cache can hold. Smaller "
        "keeps single requests from filling the cache.",
    )
    max_batch_prefill_tokens: int | None = flag(
        None,
        help="Token budget of one step: decoding sequences take one each, prompts share the rest in chunks. Too small: "
        "long prompts take many steps. Too large: bursts of prompts, which come two steps in a row, stall the running "
        "streams. Unset: 4096 on CUDA, 512 on CPU.",
    )
    prefix_caching: bool = flag(
        True, help="Reuse the KV blocks of prompts and answers that begin alike. Off: every prompt is computed whole."
    )
    max_batch_size: int | None = flag(
        None,
        help="Most sequences that run at once. Unset: as many as the KV cache holds. Smaller answers each one faster, and "
        "fewer of them.",
    )
    speculate: int = flag(
        0,
        help="Tokens that shards may guess for a sequence at each step, from where its text said the same before, and check in "
        "one forward. Answers stay the same, but for near ties that 16-bit arithmetic rounds otherwise. Texts that repeat "
        "themselves come faster; with many sequences at once wrong guesses cost time. 0: none.",
    )
    max_best_of: int = flag(
        2, help="Most answers that `best_of` may choose from. Each is computed whole. 1: `best_of` is not allowed."
    )
    max_top_n_tokens: int = flag(
        5, help="Most alternatives to each token that `top_n_tokens` may ask for. OpenAI's `top_logprobs` may be 20."
    )
    max_client_batch_size: int = flag(4, help="Prompts that one request to /v1/completions may bring.")
    payload_limit: int = flag(2_000_000, help="Longest request body, in bytes; longer ones get 413.")
    compute_type: str | None = flag(
        None, help="What answers name as `x-compute-type`. Unset: the number of shards and their kind of device."
    )
    api_key: tuple[str, ...] = flag(
        (),
        secret=True,
        help="Key that requests must carry as `Authorization: Bearer KEY`; may be given several times, and any of them will "
        "do. Unset: everyone may ask. /health, /ping, /info, /metrics, /v1/models and /docs are open to all.",
    )
    cors_allow_origin: tuple[str, ...] = flag(
        (), help="Web origin whose pages may call this server from a browser; may be given several times. Unset: all may."
    )
    max_stop_sequences: int = flag(
        4, help="Stop sequences that one request may have. Each costs a search in the text at every token."
    )
    validation_workers: int = flag(
        2, help="Threads that tokenize prompts. Too few: long prompts wait for each other; too many take the shards' cores."
    )
    graceful_termination_timeout: float = flag(
        90.0, help="Seconds that running requests get to finish after SIGTERM before they are cut off."
    )
    json_output: bool = flag(False, help="Log one JSON object a line instead of text.")

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise ValueError(f"`port` must be between 1 and 65535. Given: {self.port}")
        if self.tokenizer_path is None and self.launch_status_path is None:
            raise ValueError("`tokenizer_path` must be set")
        for name in _AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be > 0. Given: {value}")
        for name in ("max_stop_sequences", "max_top_n_tokens", "speculate", "graceful_termination_timeout"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` cannot be < 0. Given: {getattr(self, name)}")
        if self.max_total_tokens == 1:
            raise ValueError("`max_total_tokens` must be > 1: a prompt and an answer have a token each at least")
        most_input, most_total = self.max_input_tokens, self.max_total_tokens
        if most_input is not None and most_input < 1:
            raise ValueError(f"`max_input_tokens` must be > 0. Given: {most_input}")
        if most_input is not None and most_total is not None and most_input >= most_total:
            raise ValueError(f"`max_input_tokens` ({most_input}) must be < `max_total_tokens` ({most_total})")

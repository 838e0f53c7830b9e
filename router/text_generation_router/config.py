"""RouterConfig: everything a router can be told, with its flags, environment variables and limits.

In: a command line. Out: one frozen object, handed down by constructors. Standard library only, so that the launcher can
build it too. Knows nothing of the model: what the shards say (blocks, positions) is found out later and kept elsewhere.
"""

import dataclasses

from text_generation_proto.flags import flag


@dataclasses.dataclass(frozen=True, slots=True)
class RouterConfig:
    tokenizer_path: str = flag(
        help="Folder that holds the model's tokenizer.json. It must be the tokenizer of the model that the shards serve: "
        "another one gives text without sense."
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
        "long prompts take many steps. Too large: a long prompt stalls the running streams. Unset: 4096 on CUDA, "
        "512 on CPU.",
    )
    prefix_caching: bool = flag(
        True, help="Reuse the KV blocks of prompts and answers that begin alike. Off: every prompt is computed whole."
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
        for name in ("max_concurrent_requests", "validation_workers", "max_batch_prefill_tokens", "max_total_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be > 0. Given: {value}")
        for name in ("max_stop_sequences", "graceful_termination_timeout"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` cannot be < 0. Given: {getattr(self, name)}")
        if self.max_total_tokens == 1:
            raise ValueError("`max_total_tokens` must be > 1: a prompt and an answer have a token each at least")
        most_input, most_total = self.max_input_tokens, self.max_total_tokens
        if most_input is not None and most_input < 1:
            raise ValueError(f"`max_input_tokens` must be > 0. Given: {most_input}")
        if most_input is not None and most_total is not None and most_input >= most_total:
            raise ValueError(f"`max_input_tokens` ({most_input}) must be < `max_total_tokens` ({most_total})")

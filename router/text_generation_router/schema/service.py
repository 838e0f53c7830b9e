"""The bodies of /info: what is served, by whom, and within what limits."""

from msgspec import Struct


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

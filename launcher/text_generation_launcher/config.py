"""LauncherConfig: everything a person says once, when the whole server starts.

In: a command line and the environment. Out: one frozen object, and from it the configs of the shards and of the router.
A flag that a shard or the router has too keeps its default and its help from there. Knows nothing of processes.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from text_generation_proto.flags import env_name, flag
from text_generation_router.config import RouterConfig
from text_generation_server.config import ShardConfig


def same_as(owner: type, name: str, **changes: Any) -> Any:
    """A field with the default, help and limits of `owner`'s field of that name."""
    field = next(field for field in dataclasses.fields(owner) if field.name == name)
    return dataclasses.field(default=field.default, repr=field.repr, metadata={**field.metadata, **changes})


@dataclasses.dataclass(frozen=True, slots=True)
class LauncherConfig:
    model_id: str = flag(
        "bigscience/bloom-560m",
        help="The model: a folder with config.json, tokenizer.json and weights, a GGUF file, or a name on the Hugging Face "
        "hub, from where it is downloaded first (org/name, or org/name/file.gguf).",
    )
    revision: str | None = same_as(ShardConfig, "revision")
    num_shard: int | None = flag(
        None,
        help="Processes that the model is split over, one GPU each. More hold larger models and answer faster; it must "
        "divide the model's number of heads. Unset: the visible GPUs, else 1.",
    )
    sharded: bool | None = flag(
        None, help="Split over all visible GPUs, and fail if there are fewer than 2. false: one shard."
    )
    trust_remote_code: bool = same_as(ShardConfig, "trust_remote_code")
    random_weights: bool = same_as(ShardConfig, "random_weights")
    quantize: str | None = same_as(ShardConfig, "quantize")
    dtype: str | None = same_as(ShardConfig, "dtype")
    hostname: str = same_as(RouterConfig, "hostname")
    port: int = same_as(RouterConfig, "port")
    max_concurrent_requests: int = same_as(RouterConfig, "max_concurrent_requests")
    max_input_tokens: int | None = same_as(RouterConfig, "max_input_tokens")
    max_input_length: int | None = flag(None, help="Deprecated name of --max-input-tokens.")
    max_total_tokens: int | None = same_as(RouterConfig, "max_total_tokens")
    max_batch_prefill_tokens: int | None = same_as(RouterConfig, "max_batch_prefill_tokens")
    max_batch_size: int | None = same_as(RouterConfig, "max_batch_size")
    speculate: int = same_as(RouterConfig, "speculate")
    max_best_of: int = same_as(RouterConfig, "max_best_of")
    max_stop_sequences: int = same_as(RouterConfig, "max_stop_sequences")
    max_top_n_tokens: int = same_as(RouterConfig, "max_top_n_tokens")
    max_client_batch_size: int = same_as(RouterConfig, "max_client_batch_size")
    payload_limit: int = same_as(RouterConfig, "payload_limit")
    compute_type: str | None = same_as(RouterConfig, "compute_type")
    api_key: tuple[str, ...] = same_as(RouterConfig, "api_key")
    cors_allow_origin: tuple[str, ...] = same_as(RouterConfig, "cors_allow_origin")
    tokenizer_config_path: str | None = same_as(RouterConfig, "tokenizer_config_path")
    validation_workers: int = same_as(RouterConfig, "validation_workers")
    prefix_caching: bool = same_as(RouterConfig, "prefix_caching")
    block_size: int = same_as(ShardConfig, "block_size")
    kv_cache_gib: float | None = same_as(ShardConfig, "kv_cache_gib")
    kv_cache_dtype: str = same_as(ShardConfig, "kv_cache_dtype")
    cuda_graphs: str = same_as(ShardConfig, "cuda_graphs")
    cuda_memory_fraction: float = same_as(ShardConfig, "cuda_memory_fraction")
    num_threads: int | None = same_as(ShardConfig, "num_threads")
    watermark_gamma: float = same_as(ShardConfig, "watermark_gamma")
    watermark_delta: float = same_as(ShardConfig, "watermark_delta")
    shard_uds_path: str = same_as(ShardConfig, "shard_uds_path")
    master_addr: str = same_as(ShardConfig, "master_addr")
    master_port: int = same_as(ShardConfig, "master_port")
    collective_timeout_seconds: float = same_as(ShardConfig, "collective_timeout_seconds")
    one_shot_all_reduce: bool = same_as(ShardConfig, "one_shot_all_reduce")
    huggingface_hub_cache: str | None = flag(
        None, help="Folder for downloaded models. Unset: the hub library's own, ~/.cache/huggingface/hub."
    )
    max_restarts: int = flag(
        3,
        help="How often shards or router may die and be started again within --restart-window-seconds before the "
        "launcher gives up and exits with 1. 0: at the first death. Too large: what always crashes is never given up.",
    )
    restart_window_seconds: float = flag(
        600.0,
        help="Restarts longer ago than this no longer count. Too short: a model that loads slowly and then crashes is "
        "started again for ever.",
    )
    graceful_termination_timeout: float = same_as(RouterConfig, "graceful_termination_timeout", short="-g")
    json_output: bool = same_as(RouterConfig, "json_output")

    def __post_init__(self) -> None:
        if self.sharded and self.num_shard is not None and self.num_shard <= 1:
            raise ValueError("`sharded` is true but `num_shard` <= 1")
        if self.num_shard is not None and self.num_shard < 1:
            raise ValueError(f"`num_shard` cannot be < 1. Given: {self.num_shard}")
        if self.max_input_tokens is not None and self.max_input_length is not None:
            raise ValueError(
                f"Both `max_input_tokens` ({self.max_input_tokens}) and `max_input_length` ({self.max_input_length}) "
                "are set. Please define only `max_input_tokens`, as `max_input_length` is deprecated."
            )
        if self.max_restarts < 0:
            raise ValueError(f"`max_restarts` cannot be < 0. Given: {self.max_restarts}")
        # The configs of the children say the rest, now rather than when the weights are already there.
        self.router_config()
        self.shard_config(0, 1, Path(self.model_id))

    @property
    def launch_status_path(self) -> str:
        return f"{self.shard_uds_path}-status"

    def world_size(self, num_gpus: int) -> int:
        """How many shards to start on a machine with `num_gpus` visible GPUs. Raises: ValueError."""
        if self.num_shard is not None:
            if 0 < num_gpus < self.num_shard:
                raise ValueError(
                    f"not enough cuda devices: `num_shard` is {self.num_shard} but only found {num_gpus} CUDA devices"
                )
            return self.num_shard
        if self.sharded and num_gpus < 2:
            raise ValueError(f"not enough cuda devices: `sharded` is true but only found {num_gpus} CUDA devices")
        return 1 if self.sharded is False else max(num_gpus, 1)

    def shard_config(self, rank: int, world_size: int, model_path: Path) -> ShardConfig:
        changes = {
            "model_id": str(model_path),
            "max_batch_tokens": self.max_batch_prefill_tokens,
            "rank": rank,
            "world_size": world_size,
        }
        return ShardConfig(**self._values_for(ShardConfig) | changes)

    def router_config(self) -> RouterConfig:
        """It starts before the model's folder is known; the file at `launch_status_path` will name it."""
        limit = self.max_input_length if self.max_input_tokens is None else self.max_input_tokens
        changes = {"launch_status_path": self.launch_status_path, "max_input_tokens": limit}
        return RouterConfig(**self._values_for(RouterConfig) | changes)

    def child_environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """What children see of the environment: all but the variables that stand for their flags.

        A child's command line leaves out what equals the default: such a variable would win over a flag given here.
        """
        said = {env_name(field) for owner in (RouterConfig, ShardConfig) for field in dataclasses.fields(owner)}
        environment = {name: value for name, value in inherited.items() if name not in said}
        environment["PYTHONUNBUFFERED"] = "1"  # their lines come when they are printed, through a pipe too
        if self.huggingface_hub_cache:
            environment["HF_HUB_CACHE"] = self.huggingface_hub_cache
        if environment.get("HF_API_TOKEN") and not environment.get("HF_TOKEN"):
            environment["HF_TOKEN"] = environment["HF_API_TOKEN"]  # the old name, which the hub library does not know
        return environment

    def _values_for(self, owner: type) -> dict[str, Any]:
        mine = {field.name for field in dataclasses.fields(self)}
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(owner) if field.name in mine}

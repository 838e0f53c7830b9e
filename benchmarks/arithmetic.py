"""Arithmetic: how many tokens a second the multiplications alone allow, which no server in the same type passes with any batch.

In: a model folder, a type, how many tokens its requests have. Out: tokens/s of the answers, from the speed of products of large
matrices in this run. Attention, norms and all else are left out.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from table import median

from text_generation_server.layers.linear import make_linear

SIZES = (1024, 2048, 4096)
ROWS = 512
NUM_PRODUCTS = 7
EMBEDDINGS = ("embed_tokens.weight", "word_embeddings.weight")  # read, not multiplied, except as a head
HEAD = "lm_head.weight"


def multiplications_per_second(dtype: torch.dtype) -> float:
    """Each with the addition that goes with it: the fastest of what PyTorch has, and of some sizes."""
    return max(max(_speed(size, dtype, torch.nn.functional.linear), _speed(size, dtype, None)) for size in SIZES)


def _speed(
    size: int, dtype: torch.dtype, multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None
) -> float:
    """Without `multiply`, of the server's own way for weights published in 16 bits."""
    weight, x = torch.randn(size, size).half().to(dtype), torch.randn(ROWS, size).to(dtype)
    linear = make_linear(weight, None)
    seconds = []
    for _ in range(NUM_PRODUCTS):
        start_seconds = time.perf_counter()
        linear(x) if multiply is None else multiply(x, weight)
        seconds.append(time.perf_counter() - start_seconds)
    return ROWS * size * size / median(seconds)


def most_tokens_per_second(folder: Path, dtype: str, prompt_tokens: int, new_tokens: int) -> float:
    """Each request's prompt goes through all layers, each token of its answer through the head too."""
    layers, head = _count_weights(folder)
    multiplications = (prompt_tokens + new_tokens - 1) * layers + new_tokens * head
    return new_tokens * multiplications_per_second(getattr(torch, dtype)) / multiplications


def _count_weights(folder: Path) -> tuple[int, int]:
    """Of the matrices of all layers, and of the head."""
    sizes: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  # no dict
        sizes |= {name: math.prod(shape) for name, shape in shapes.items() if len(shape) == 2}
    embeddings = sum(sizes.pop(name) for name in list(sizes) if name.endswith(EMBEDDINGS))
    return sum(sizes.values()) - sizes.get(HEAD, 0), sizes.get(HEAD, embeddings)

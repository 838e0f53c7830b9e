"""Which attention a device runs: our kernels where they do, plain PyTorch everywhere else."""

from collections.abc import Sequence

import torch

from text_generation_server import cpu_kernels, kernels
from text_generation_server.attention.kind import Attention
from text_generation_server.attention.paged_cpu import CpuAttention, can_attend
from text_generation_server.attention.sdpa import PagedAttention
from text_generation_server.kv_cache import KVCache, KVShape


def make_attention(cache: KVCache, slopes: torch.Tensor | None = None) -> Attention:
    """`slopes` [num_heads]: this rank's, of a model with ALiBi."""
    if can_attend(cache.shapes, cache.block_size, cache.dtype, cache.device) and (library := cpu_kernels.library()):
        return CpuAttention(cache, slopes, library)
    can_read = kernels.read_float8_on if cache.dtype == torch.float8_e4m3fn else kernels.run_on
    if not can_read(cache.device):
        return PagedAttention(cache, slopes)
    from text_generation_server.attention.paged_triton import TritonAttention

    return TritonAttention(cache, slopes)


def choose_cache_dtype(
    shapes: Sequence[KVShape], block_size: int, dtype: torch.dtype, hidden_dtype: torch.dtype, device: torch.device
) -> torch.dtype:
    """Of keys and values, where matrices are `dtype` and hidden states `hidden_dtype`: bfloat16 too, if our CPU kernel reads
    it, which it does in half the time."""
    if dtype != torch.bfloat16 or not can_attend(shapes, block_size, dtype, device):
        return hidden_dtype
    return dtype if cpu_kernels.library() else hidden_dtype

"""Which attention a device runs: our kernels where they do, plain PyTorch everywhere else."""

import torch

from text_generation_server import cpu_kernels, kernels
from text_generation_server.attention.kind import Attention
from text_generation_server.attention.paged_cpu import CpuAttention, can_attend
from text_generation_server.attention.sdpa import PagedAttention
from text_generation_server.kv_cache import KVCache


def make_attention(cache: KVCache, slopes: torch.Tensor | None = None) -> Attention:
    """`slopes` [num_heads]: this rank's, of a model with ALiBi."""
    if can_attend(cache) and (library := cpu_kernels.library()):
        return CpuAttention(cache, slopes, library)
    can_read = kernels.read_float8_on if cache.dtype == torch.float8_e4m3fn else kernels.run_on
    if not can_read(cache.device):
        return PagedAttention(cache, slopes)
    from text_generation_server.attention.paged_triton import TritonAttention

    return TritonAttention(cache, slopes)

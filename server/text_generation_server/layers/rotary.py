"""Rotary positions (Su et al. 2021, arXiv:2104.09864): pairs of numbers of a query or key turned by angles of its position.

In: what config.json says of them. Out: the turns of positions, and turned heads. A pair is two neighbours, taken as a complex
number: one multiplication turns it. Checkpoints that pair the first half of a head with its second are put in that order once,
when their weights are loaded; scores are the same in either.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from text_generation_server import cpu_kernels


class Rotary(torch.nn.Module):
    def __init__(self, head_dim: int, rope: Mapping[str, Any], device: torch.device) -> None:
        """`rope`: rope_parameters of config.json, of type default, linear or llama3."""
        super().__init__()
        frequencies = rope["rope_theta"] ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        self.frequencies = _stretched(frequencies, rope).to(device)  # [head_dim / 2], of turns in radians

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        """positions [num_tokens] → turns [num_tokens, 1, head_dim / 2], complex."""
        angles = positions.unsqueeze(1) * self.frequencies
        return torch.polar(torch.ones_like(angles), angles).unsqueeze(1)


def turn(heads: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """heads [num_tokens, num_heads, head_dim], turns [num_tokens, 1, head_dim / 2] → the heads, turned, in their type, and in
    place where our CPU kernel does it."""
    num_tokens, num_heads, head_dim = heads.shape
    is_plain = heads.device.type == "cpu" and heads.dtype == torch.float32 and heads.stride()[1:] == (head_dim, 1)
    if is_plain and (library := cpu_kernels.library()):
        library.rotate(heads.data_ptr(), heads.stride(0), num_tokens, num_heads, head_dim, turns.data_ptr())
        return heads
    pairs = torch.view_as_complex(heads.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).to(heads.dtype)


def pair_halves(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """rows [num_heads * head_dim, ...] of a matrix or bias that pairs halves → the same heads with pairs as neighbours."""
    return rows.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def _stretched(frequencies: torch.Tensor, rope: Mapping[str, Any]) -> torch.Tensor:
    if rope["rope_type"] == "linear":  # (Chen et al. 2023, arXiv:2306.15595)
        return frequencies / rope["factor"]
    if rope["rope_type"] == "llama3":
        return _stretched_when_slow(frequencies, rope)
    return frequencies


def _stretched_when_slow(frequencies: torch.Tensor, rope: Mapping[str, Any]) -> torch.Tensor:
    """Llama 3.1 (Grattafiori et al. 2024, arXiv:2407.21783): what turns often within the original length stays, what turns
    seldom is stretched by `factor`, and between the two it goes over smoothly."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    num_turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = ((num_turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / rope["factor"])

"""Rows of random logits, and sampling parameters that say nothing but what a test wants of them."""

from typing import Any

import torch

from text_generation_server.sampling import Sampling

VOCAB_SIZE = 301  # does not divide by two


def make_sampling(**options: Any) -> Sampling:
    defaults = {"do_sample": True, "temperature": 1.0, "top_k": None, "top_p": None, "repetition_penalty": 1.0, "seed": 0}
    return Sampling(**(defaults | options))


def make_logits(num_rows: int = 1, seed: int = 0, vocab_size: int = VOCAB_SIZE) -> torch.Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3

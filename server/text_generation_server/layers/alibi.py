"""ALiBi slopes: how fast each head forgets. In: a number of heads. Out: one slope a head."""

import math

import torch


def alibi_slopes(num_heads: int) -> torch.Tensor:
    """[num_heads] float32, after Press et al. 2021 (arXiv:2108.12409, section 3 and its released code).

    For a power of two n: 2^(-8/n), 2^(-16/n), …. Any other count takes those of the power of two below it, and then every
    second one of the power of two above: BLOOM-176B has 112 heads, 64 of the first kind and 48 of the second.
    """
    below = 2 ** int(math.log2(num_heads))
    slopes = _geometric(below)
    if below < num_heads:
        slopes += _geometric(2 * below)[0::2][: num_heads - below]
    return torch.tensor(slopes, dtype=torch.float32)


def _geometric(num_heads: int) -> list[float]:
    first = 2.0 ** (-8.0 / num_heads)
    return [first ** (head + 1) for head in range(num_heads)]

"""Activations: what is made of a linear's output before the next one takes it.

In: any tensor. Out: a new one.
"""

import enum
import math

import torch
import torch.nn.functional as F

LINEAR = 2 * math.sqrt(2 / math.pi)
CUBIC = 0.044715 * LINEAR


class Activation(enum.IntEnum):
    """As in server/kernels/linear.c."""

    NONE = 0
    GELU = 1
    SILU_GATE = 2  # silu of the first half of the outputs, times the second half

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        if self is Activation.GELU:
            return gelu(x)
        if self is Activation.SILU_GATE:
            gate, value = x.chunk(2, dim=-1)
            return F.silu(gate).mul_(value)
        return x


def gelu(x: torch.Tensor) -> torch.Tensor:
    """GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415) in the form with a tanh, as BLOOM was trained with it. For the same
    curve written with a sigmoid, 1 + tanh(y) being twice that of 2y, a CPU takes half as long in float32."""
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return F.gelu(x, approximate="tanh")
    return (x * x).mul_(CUBIC).add_(LINEAR).mul_(x).sigmoid_().mul_(x)


class ActivatedLinear(torch.nn.Module):
    """A linear and the activation after it."""

    def __init__(self, linear: torch.nn.Module, weight_bytes: int, activation: Activation) -> None:
        super().__init__()
        self.linear = linear
        self.weight_bytes = weight_bytes
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation.apply(self.linear(x))

"""RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467), and what takes the place of other libraries' in their models.

In: a weight, or a loaded module. Out: a module. On a CPU PyTorch makes nine small operations of it, and other libraries six,
which is most of what a layer's decode step spends beside its matrices; our kernel is one.
"""

import ctypes
from typing import Any

import torch
import torch.nn.functional as F

from text_generation_server import cpu_kernels

EPSILON_NAMES = ("variance_epsilon", "eps", "epsilon")
NUM_ROWS = 3  # that both are tried on


class RmsNorm(torch.nn.Module):
    def __init__(self, weight: torch.Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.epsilon = epsilon
        library = cpu_kernels.library() if weight.device.type == "cpu" and weight.dtype == torch.float32 else None
        self._norm_rows = library.norm_rows if library else None
        self._struct = cpu_kernels.Norm(weight.data_ptr(), None, epsilon)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._norm_rows is None or x.dtype != torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)
        size = len(self.weight)
        if x.shape[-1] != size:
            raise ValueError(f"a norm of {size} numbers was given {x.shape[-1]}")
        rows, output = x.contiguous(), torch.empty(x.shape, dtype=torch.float32)
        self._norm_rows(ctypes.addressof(self._struct), size, rows.data_ptr(), output.data_ptr(), x.numel() // size)
        return output


@torch.inference_mode()
def replacement(module: Any) -> RmsNorm | None:
    """For what calls itself RMSNorm; some multiply by one more than their weight, or do more."""
    weight = getattr(module, "weight", None)
    epsilon = next((value for name in EPSILON_NAMES if isinstance(value := getattr(module, name, None), float)), None)
    if not type(module).__name__.endswith("RMSNorm") or epsilon is None or not isinstance(weight, torch.Tensor):
        return None
    if weight.dim() != 1 or weight.dtype != torch.float32 or weight.device.type != "cpu" or not cpu_kernels.library():
        return None
    norm = RmsNorm(weight.detach(), epsilon)
    x = torch.randn(NUM_ROWS, len(weight)) * epsilon**0.5  # so small that a wrong epsilon would show
    output, wider_output = _try(module, x), _try(module, torch.ones(1, len(weight) + 1))
    if output is None or wider_output is not None:  # it takes more than hidden states, or any and has no use for its weight
        return None
    return norm if torch.allclose(output, norm(x), rtol=1e-5, atol=1e-6) else None


def _try(module: Any, x: torch.Tensor) -> torch.Tensor | None:
    try:
        output = module(x)
    except (TypeError, ValueError, RuntimeError):
        return None
    return output if isinstance(output, torch.Tensor) and output.shape == x.shape else None

"""Norms of hidden states, and linears that read what is normed.

In: hidden states, and what the linear before adds to them. Out: their sum, and what the next one makes of the norm of it. Our
kernels do all of that in one call on CPUs, and the sum and the norm in one on GPUs.
"""

import ctypes
from collections.abc import Sequence
from types import ModuleType

import torch
import torch.nn.functional as F

from text_generation_server import cpu_kernels, kernels
from text_generation_server.layers.blocked import BlockedLinear
from text_generation_server.layers.linear import Linear, RowLinear
from text_generation_server.layers.rms_norm import RmsNorm


class LayerNorm(torch.nn.Module):
    """(Ba et al. 2016, arXiv:1607.06450)"""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.epsilon = epsilon
        self.fused = _import_fused(weight.device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


def add_and_norm(
    norm: LayerNorm | RmsNorm, x: torch.Tensor, update: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + update, and the norm of it."""
    if update is not None and isinstance(norm, LayerNorm) and norm.fused:
        return norm.fused.add_and_norm(x, update, norm.weight, norm.bias, norm.epsilon)
    total = x if update is None else x + update
    return total, norm(total)


class NormedLinear:
    """hidden, update [num_tokens, in_features] → hidden + update, and linear(norm(of that)). With `keeps_norm` the first of the
    two is the norm as well."""

    def __init__(self, norm: LayerNorm | RmsNorm, linear: Linear, keeps_norm: bool = False) -> None:
        self.norm = norm
        self.linear = linear
        self.keeps_norm = keeps_norm
        bias = norm.bias if isinstance(norm, LayerNorm) else None
        self._struct = cpu_kernels.Norm(norm.weight.data_ptr(), cpu_kernels.address(bias), norm.epsilon)
        self.norm_address = ctypes.addressof(self._struct)

    def __call__(self, hidden: torch.Tensor, update: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """`hidden` may be changed: it is the sum then."""
        if isinstance(self.linear, BlockedLinear) and not self.keeps_norm:
            return hidden, self.linear.multiply(hidden, self.norm_address, update)
        hidden, normed = add_and_norm(self.norm, hidden, update)
        return normed if self.keeps_norm else hidden, self.linear(normed)


class Chain:
    """Linears one after the other, from one attention to the next. A RowLinear multiplies what the one before it gave. A
    NormedLinear adds that to the hidden states, and multiplies the norm of these. Our CPU kernel makes one call of it: between
    a decode step's small products Python takes as long as they do."""

    def __init__(self, links: Sequence[RowLinear | NormedLinear]) -> None:
        self.links = links
        linears = [link.linear for link in links]
        self.out_features = linears[-1].out_features if isinstance(linears[-1], BlockedLinear) else 0
        library = cpu_kernels.library() if all(map(_is_fused, links)) else None
        self._call = library.multiply_in_turn if library else None
        norms = [link.norm_address if isinstance(link, NormedLinear) else None for link in links]
        addresses = [linear.address if isinstance(linear, BlockedLinear) else None for linear in linears]
        self._structs = (cpu_kernels.Link * len(links))(*map(cpu_kernels.Link, addresses, norms))

    def __call__(self, hidden: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden [num_tokens, hidden_size], which may be changed, and what the first link takes → hidden states with what was
        added, and what the last link gives."""
        if self._call is not None:
            x, output = x.contiguous(), torch.empty(len(x), self.out_features, dtype=torch.float32)
            places = hidden.data_ptr(), x.data_ptr(), output.data_ptr()
            self._call(ctypes.addressof(self._structs), len(self.links), *places, len(x))
            return hidden, output
        for link in self.links:
            hidden, x = link(hidden, x) if isinstance(link, NormedLinear) else (hidden, link(x))
        return hidden, x


def _is_fused(link: RowLinear | NormedLinear) -> bool:
    is_alone = not link.keeps_norm if isinstance(link, NormedLinear) else link.parallel.world_size == 1
    return isinstance(link.linear, BlockedLinear) and is_alone


def _import_fused(device: torch.device) -> ModuleType | None:
    """Our kernel for both at once, where it runs."""
    if not kernels.run_on(device):
        return None
    from text_generation_server.layers import fused

    return fused

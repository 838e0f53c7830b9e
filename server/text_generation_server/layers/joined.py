"""Joined: linears of another library's module that read the same input, multiplied as one.

In: loaded linears that stand side by side. Out: modules in their places, each of which gives its own part of one product. A
matrix that is too small to keep the cores busy costs as much as one of three times its size.
"""

from collections.abc import Sequence

import torch

from text_generation_server.layers.linear import Linear

# What decoders of the transformers library call those that are given the same hidden states, one after the other.
NAMES = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
CROSS_ATTENTION = ("encoder", "cross")  # in the names of those whose queries come from elsewhere than keys and values


class Joined:
    """The product of all parts for the latest input: the first part that sees an input computes it."""

    def __init__(self, linear: Linear, sizes: Sequence[int]) -> None:
        self.linear = linear
        self._sizes = list(sizes)
        self._input: torch.Tensor | None = None
        self._outputs: tuple[torch.Tensor, ...] = ()

    def part(self, index: int, x: torch.Tensor) -> torch.Tensor:
        if x is not self._input:
            self._input, self._outputs = x, self.linear(x).split(self._sizes, dim=-1)
        output = self._outputs[index].contiguous()  # models look at it in other shapes
        if index == len(self._sizes) - 1:
            self._input, self._outputs = None, ()
        return output


class JoinedPart(torch.nn.Module):
    def __init__(self, joined: Joined, index: int) -> None:
        super().__init__()
        self.joined = joined
        self.index = index

    @property
    def weight_bytes(self) -> int:
        """The first one's are all of them."""
        return self.joined.linear.weight_bytes if self.index == 0 else 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.joined.part(self.index, x)


def find_joined(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Of a model's module names, those that stand side by side and may be joined."""
    known = set(names)
    parents = {name.rpartition(".")[0] for name in names}
    parents = {parent for parent in parents if not any(word in parent.rpartition(".")[2] for word in CROSS_ATTENTION)}
    groups = [tuple(f"{parent}.{own}" for own in group) for parent in sorted(parents) for group in NAMES]
    return [group for group in groups if known.issuperset(group)]

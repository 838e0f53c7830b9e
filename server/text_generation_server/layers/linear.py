"""Linear layers over ranks: split by output (column) or by input (row), stored as the device and --quantize want it.

In: a checkpoint's [out_features, in_features] weight. Out: modules that hold this rank's slice.
The classic pair (Shoeybi et al. 2019, arXiv:1909.08053): a column linear needs no communication, the row linear after it
one all-reduce.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from text_generation_server import cpu_kernels
from text_generation_server.device import BFLOAT16_TILES, cpu_flags
from text_generation_server.errors import ConfigurationError
from text_generation_server.layers.activation import ActivatedLinear, Activation
from text_generation_server.layers.blocked import BlockedLinear, Kind, kind_of
from text_generation_server.layers.packed import PackedLinear, can_be_packed
from text_generation_server.layers.quantized import FourBitLinear, Int8Linear
from text_generation_server.parallel import Parallel
from text_generation_server.weights import Weights

FOUR_BITS = ("bitsandbytes-nf4", "bitsandbytes-fp4")


class PlainLinear(torch.nn.Module):
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    @property
    def weight_bytes(self) -> int:
        return self.weight.nbytes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


Linear = PlainLinear | PackedLinear | BlockedLinear | Int8Linear | FourBitLinear | ActivatedLinear


def make_linear(
    weight: torch.Tensor, bias: torch.Tensor | None, quantize: str | None = None, activation: Activation = Activation.NONE
) -> Linear:
    """The module that multiplies by `weight` [out, in] fastest in the kind of storage asked for, and applies the activation.

    Raises:
        ConfigurationError: it is not there for this device.
    """
    if weight.device.type == "cpu" and (blocked := _make_blocked(weight, bias, quantize, activation)):
        return blocked
    linear = _make_unblocked(weight, bias, quantize)
    return linear if activation is Activation.NONE else ActivatedLinear(linear, linear.weight_bytes, activation)


def _make_blocked(
    weight: torch.Tensor, bias: torch.Tensor | None, quantize: str | None, activation: Activation
) -> BlockedLinear | None:
    """For our CPU kernels, where they run. Units for tiles of bfloat16 oneDNN knows, and they do not."""
    library = cpu_kernels.library()
    if library is None or quantize in FOUR_BITS:
        return None
    if quantize is None and weight.dtype == torch.bfloat16 and BFLOAT16_TILES in cpu_flags() and can_be_packed(weight):
        return None
    kind = kind_of(weight, quantize, units=library.inputs_together(Kind.BFLOAT16_UNITS) > 0)
    return BlockedLinear(weight, bias, kind, activation, library)


def _make_unblocked(weight: torch.Tensor, bias: torch.Tensor | None, quantize: str | None) -> Linear:
    if quantize in FOUR_BITS:
        return FourBitLinear(weight, bias, quantize.removeprefix("bitsandbytes-"))
    if quantize == "bitsandbytes" and weight.device.type == "cuda":
        return Int8Linear(weight, bias)
    if quantize == "int8-dynamic" and weight.device.type == "cuda":
        raise ConfigurationError("--quantize int8-dynamic is for CPUs; use bitsandbytes on a GPU")
    if quantize is not None:
        raise ConfigurationError(
            f"--quantize {quantize} on a CPU needs our kernels: an x86 processor with AVX2, and a C compiler when this package "
            "was installed; the 4-bit kinds do not"
        )
    return PackedLinear(weight, bias) if can_be_packed(weight) else PlainLinear(weight, bias)


def head_storage(quantize: str | None) -> str | None:
    """bitsandbytes leaves the head as it is, and so do the kinds that are named after it."""
    return quantize if quantize == "int8-dynamic" else None


def load_matrix(
    weights: Weights,
    name: str,
    shape: tuple[int, int],
    quantize: str | None,
    rows: slice | None = None,
    columns: slice | None = None,
) -> torch.Tensor:
    """In the type that it is multiplied in; what is to become fewer bits is not rounded before."""
    load = weights.load if quantize else weights.load_matrix
    return load(name, shape, rows, columns)


def load_column_linear(
    weights: Weights,
    name: str,
    out_features: int,
    in_features: int,
    rows: slice,
    quantize: str | None,
    activation: Activation = Activation.NONE,
) -> Linear:
    """`rows` of the output: [..., in_features] → [..., rows]."""
    weight = load_matrix(weights, f"{name}.weight", (out_features, in_features), quantize, rows=rows)
    return make_linear(weight, weights.load(f"{name}.bias", (out_features,), rows=rows), quantize, activation)


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """One of several linears with the same input. `arrange` puts its rows in the order that is wanted of the output."""

    name: str
    out_features: int
    rows: slice
    arrange: Callable[[torch.Tensor], torch.Tensor] = lambda rows: rows


def load_stacked_linear(
    weights: Weights,
    parts: Sequence[Part],
    in_features: int,
    has_bias: bool,
    quantize: str | None,
    activation: Activation = Activation.NONE,
) -> Linear:
    """The parts as one product, one after the other: [..., in_features] → [..., rows of all]."""
    matrices, biases = [], []
    for part in parts:
        shape = (part.out_features, in_features)
        matrix = load_matrix(weights, f"{part.name}.weight", shape, quantize, rows=part.rows)
        matrices.append(part.arrange(matrix))
        if has_bias:
            biases.append(part.arrange(weights.load(f"{part.name}.bias", (part.out_features,), rows=part.rows)))
    return make_linear(torch.cat(matrices), torch.cat(biases) if has_bias else None, quantize, activation)


class RowLinear(torch.nn.Module):
    """`columns` of the input: [..., columns] → [..., out_features], summed over the ranks. Rank 0 adds the bias."""

    def __init__(
        self,
        weights: Weights,
        name: str,
        out_features: int,
        in_features: int,
        columns: slice,
        parallel: Parallel,
        quantize: str | None,
        has_bias: bool = True,
    ) -> None:
        super().__init__()
        weight = load_matrix(weights, f"{name}.weight", (out_features, in_features), quantize, columns=columns)
        bias = weights.load(f"{name}.bias", (out_features,)) if has_bias else None
        self.linear = make_linear(weight, bias if parallel.is_first else None, quantize)
        self.parallel = parallel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.parallel.all_reduce(self.linear(x))

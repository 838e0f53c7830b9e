"""float32 matrices kept in float16, where not one weight changes by it: half the bytes for the same products.

In: a float32 weight that may have been published in 16 bits, as most are. Out: a module that multiplies by it through
FBGEMM, which widens weights in registers and adds up in float32. A power of two for the whole matrix makes room for
bfloat16's exponents: float16 has more digits than bfloat16, so only weights below 2^-31 of the largest one can be lost,
and then the matrix is left as it is.
"""

import math
import warnings

import torch

IS_SUPPORTED = "fbgemm" in torch.backends.quantized.supported_engines
LARGEST_EXPONENT = 15  # float16 ends just below 2^16
ROWS_AT_ONCE = 256  # while looking: most matrices that do not fit show it at once, and copies stay small
MAX_PACKED_ROWS = 16384  # FBGEMM orders larger matrices four times as slowly, and multiplies more slowly at many rows


def narrow_exponent(weight: torch.Tensor) -> int | None:
    """The power of two by which a float32 `weight` [out, in] becomes one in float16 without loss, or None."""
    if not IS_SUPPORTED or not weight.numel():
        return None
    largest = max(map(abs, torch.stack(weight.aminmax()).tolist()))
    if not 0 < largest < math.inf:
        return None
    fitting = LARGEST_EXPONENT - math.ceil(math.log2(largest))
    return next((exponent for exponent in (0, fitting) if _is_exact(weight, math.ldexp(1.0, exponent))), None)


def _is_exact(weight: torch.Tensor, scale: float) -> bool:
    parts = weight.split(ROWS_AT_ONCE)
    scaled = parts if scale == 1 else (part * scale for part in parts)
    return all(part.equal(part.half().float()) for part in scaled)


class NarrowLinear(torch.nn.Module):
    """weight [out, in] float32: [..., in] → [..., out]. `exponent` as `narrow_exponent` found it."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, exponent: int) -> None:
        super().__init__()
        scale = math.ldexp(1.0, exponent)
        parts = weight.split(MAX_PACKED_ROWS)
        biases = [None] * len(parts) if bias is None else bias.split(MAX_PACKED_ROWS)
        self.parts = torch.nn.ModuleList(
            NarrowPart(part * scale if exponent else part, own_bias) for part, own_bias in zip(parts, biases, strict=True)
        )
        self.input_scale = 1 / scale
        self.weight_bytes = weight.numel() * torch.half.itemsize

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.input_scale != 1:
            x = x * self.input_scale
        outputs: list[torch.Tensor] = [part(x) for part in self.parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


class NarrowPart(torch.nn.Module):
    """Some rows of a matrix, all of them numbers that float16 has."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of weights beyond float16, of which there are none
            self.packed = torch.ops.quantized.linear_prepack_fp16(weight.contiguous(), bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
        return output

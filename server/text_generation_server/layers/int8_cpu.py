"""Int8 on a CPU, multiplied by FBGEMM.

In: a rank's slice of a weight. Out: a module that multiplies by it, in one of two kinds. Int8CpuLinear has the weights of
LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339). bitsandbytes keeps what is large in an input in full precision, beside the
rest in 8 bits. Here all of an input is in two digits of 7 bits, each row in a scale of its own: exact enough for both, and no
row's result depends on the others. DynamicInt8Linear has inputs of one digit: half the work, and less exact.
"""

import warnings

import torch

from text_generation_server.errors import ConfigurationError

ENGINES = torch.backends.quantized.supported_engines
# Without VNNI, two products are added in 16 bits: 2 · 127 · 127 still fits, twice as much would not. So where one factor has 8
# bits the other one has 7: weights, where inputs have two digits; else inputs, whose rows span more.
LEVELS = 127
FEWER_LEVELS = 63
TINY = 1e-30  # instead of the scale of a row of zeros


class Int8CpuLinear(torch.nn.Module):
    """weight [out, in] and bias [out], of any floating type: [..., in] → [..., out]."""

    weight_levels = LEVELS

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """
        Raises:
            ConfigurationError: this build of PyTorch is without FBGEMM, which is for x86 only.
        """
        super().__init__()
        if "fbgemm" not in ENGINES:
            raise ConfigurationError("int8 on a CPU needs an x86 processor; the 4-bit kinds do not")
        weight = weight.float()
        scales = weight.abs().amax(dim=1).clamp(min=TINY) / self.weight_levels
        zero_points = torch.zeros(len(scales), dtype=torch.long)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # these tensors have a successor, which has no such kernel
            quantized = torch.quantize_per_channel(weight, scales.double(), zero_points, 0, torch.qint8)
            self.packed = torch.ops.quantized.linear_prepack(quantized, None)
        self.bias = bias
        self.weight_bytes = weight.numel() + scales.nbytes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.float()
        largest = rows.abs().amax(dim=-1, keepdim=True).clamp_(min=TINY)  # vector_norm takes ten times as long
        output = self._multiply(rows, largest)
        if self.bias is not None:
            output += self.bias
        return output.to(x.dtype)

    def _multiply(self, rows: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
        """rows [..., in] and the largest entry of each [..., 1] → [..., out]."""
        scaled = rows * (FEWER_LEVELS / largest)
        high = scaled.round()
        digits = torch.cat([high, (scaled - high) * (2 * FEWER_LEVELS)])
        of_high, of_low = self._products(digits, 1.0, FEWER_LEVELS).chunk(2)
        return of_high.add_(of_low, alpha=0.5 / FEWER_LEVELS).mul_(largest / FEWER_LEVELS)

    def _products(self, digits: torch.Tensor, unit: float, levels: int) -> torch.Tensor:
        """Rounded to multiples of `unit`, at most `levels` of them, times the weights."""
        products: torch.Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            digits, unit, levels + 1, self.packed
        )
        return products


class DynamicInt8Linear(Int8CpuLinear):
    """Weights in 7 bits and inputs in 8, each row of both in a scale of its own."""

    weight_levels = FEWER_LEVELS

    def _multiply(self, rows: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
        return self._products(rows / largest, 1 / LEVELS, LEVELS).mul_(largest)

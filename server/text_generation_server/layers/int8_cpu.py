"""Int8 on a CPU: the weights of LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339), multiplied by FBGEMM.

In: a rank's slice of a weight. Out: a module that multiplies by it. bitsandbytes keeps what is large in an input in full
precision, beside the rest in 8 bits. Here all of an input is in two digits of 7 bits, each row in a scale of its own: exact
enough for both, and no row's result depends on the others.
"""

import warnings

import torch

from text_generation_server.errors import ConfigurationError

ENGINES = torch.backends.quantized.supported_engines
WEIGHT_LEVELS = 127
# Of a digit. Without VNNI, two products are added in 16 bits: 2 · 127 · 127 still fits, twice as much would not.
DIGIT_LEVELS = 63
ZERO_POINT = 64


class Int8CpuLinear(torch.nn.Module):
    """weight [out, in] and bias [out], of any floating type: [..., in] → [..., out]."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """
        Raises:
            ConfigurationError: this build of PyTorch is without FBGEMM, which is for x86 only.
        """
        super().__init__()
        if "fbgemm" not in ENGINES:
            raise ConfigurationError("--quantize bitsandbytes needs an x86 processor or a GPU; the 4-bit kinds do not")
        weight = weight.float()
        scales = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / WEIGHT_LEVELS
        zero_points = torch.zeros(len(scales), dtype=torch.long)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # these tensors have a successor, which has no such kernel
            quantized = torch.quantize_per_channel(weight, scales.double(), zero_points, 0, torch.qint8)
            self.packed = torch.ops.quantized.linear_prepack(quantized, None)
        self.bias = bias
        self.weight_bytes = weight.numel() + scales.nbytes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(0, -2).float()
        scale = rows.abs().amax(dim=1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny) / DIGIT_LEVELS
        scaled = rows / scale
        high = scaled.round()
        digits = torch.cat([high, (scaled - high) * (2 * DIGIT_LEVELS)])
        multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        of_high, of_low = multiply(digits, 1.0, ZERO_POINT, self.packed).chunk(2)
        output = of_high.add_(of_low, alpha=0.5 / DIGIT_LEVELS).mul_(scale)
        if self.bias is not None:
            output += self.bias
        return output.view(*x.shape[:-1], -1).to(x.dtype)

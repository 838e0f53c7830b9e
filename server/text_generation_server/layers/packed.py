"""Packed: matrices put once into the order in which oneDNN multiplies them fastest on a CPU, for processors without our
kernels, or with units that oneDNN knows and they do not.

In: a weight in float32, or in bfloat16 for processors that multiply it. Out: a module that multiplies by it. oneDNN orders a
weight for a number of rows; an order made for 16 serves 1 to 512 nearly as well as their own.
"""

import torch

from text_generation_server.device import has_bfloat16_units

PACKED_FOR_ROWS = 16


def can_be_packed(weight: torch.Tensor) -> bool:
    """Whether oneDNN is there and the processor multiplies the weight's type itself."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and has_bfloat16_units())


class PackedLinear(torch.nn.Module):
    """weight [out, in], bias [out]: [..., in] → [..., out] in the input's type. What is multiplied, and what comes of it, is
    rounded to the weight's type; the sums between are float32."""

    packed: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight_bytes = weight.nbytes
        self.register_buffer("packed", torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR_ROWS))
        self.register_buffer("bias", None if bias is None else bias.to(weight.dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x if x.dim() == 2 else x.flatten(0, -2)
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            rows.to(self.packed.dtype), self.packed, self.bias, "none", [], ""
        ).to(x.dtype)
        return output if x.dim() == 2 else output.unflatten(0, x.shape[:-1])


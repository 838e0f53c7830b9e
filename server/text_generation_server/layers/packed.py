"""Packed: matrices put once into the order in which oneDNN multiplies them fastest on a CPU.

In: a weight in float32, or in bfloat16 for processors that multiply it. Out: a module that multiplies by it. oneDNN orders a
weight for a number of rows; an order made for 16 serves 1 to 512 nearly as well as their own.
"""

import functools
from typing import Any

import torch

from text_generation_server.device import has_bfloat16_units

PACKED_FOR_ROWS = 16
# With AVX-512, oneDNN reads a matrix up to a quarter more slowly for one row than for six; without, fewer rows take less time.
FEWEST_ROWS = 6 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 1
# Written as a graph, because one of the operation's arguments, a list without an element, can be recorded in no other way.
MULTIPLY = f"""
graph(%x : Tensor, %weight : Tensor, %bias : Tensor?):
  %zero : int = prim::Constant[value=0]()
  %one : int = prim::Constant[value=1]()
  %fewest : int = prim::Constant[value={FEWEST_ROWS}]()
  %no_operation : str = prim::Constant[value="none"]()
  %no_scalars : Scalar?[] = prim::ListConstruct()
  %no_algorithm : str = prim::Constant[value=""]()
  %num_rows : int = aten::size(%x, %zero)
  %is_few : bool = aten::lt(%num_rows, %fewest)
  %output : Tensor = prim::If(%is_few)
    block0():
      %num_missing : int = aten::sub(%fewest, %num_rows)
      %padding : int[] = prim::ListConstruct(%zero, %zero, %zero, %num_missing)
      %padded : Tensor = aten::constant_pad_nd(%x, %padding, %zero)
      %products : Tensor = mkldnn::_linear_pointwise(%padded, %weight, %bias, %no_operation, %no_scalars, %no_algorithm)
      %wanted : Tensor = aten::slice(%products, %zero, %zero, %num_rows, %one)
      -> (%wanted)
    block1():
      %products : Tensor = mkldnn::_linear_pointwise(%x, %weight, %bias, %no_operation, %no_scalars, %no_algorithm)
      -> (%products)
  return (%output)
"""


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
        self._multiply = _make_multiply()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x if x.dim() == 2 else x.flatten(0, -2)
        output: torch.Tensor = self._multiply(rows.to(self.packed.dtype), self.packed, self.bias).to(x.dtype)
        return output if x.dim() == 2 else output.unflatten(0, x.shape[:-1])


@functools.cache
def _make_multiply() -> Any:
    return torch._C._create_function_from_graph("multiply_packed", torch._C.parse_ir(MULTIPLY))

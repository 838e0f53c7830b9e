"""A recorded part of a model says what the part itself says, and is not recorded where it would not."""

import pytest
import torch

from processors import needs_bfloat16_units
from text_generation_server.layers.linear import make_linear
from text_generation_server.layers.quantized import FourBitLinear
from text_generation_server.layers.rms_norm import RmsNorm
from text_generation_server.layers.traced import traced

EXAMPLE = torch.zeros(2, 64)


class Part(torch.nn.Module):
    def __init__(self, weight: torch.Tensor, quantize: str | None = None) -> None:
        super().__init__()
        self.norm = RmsNorm(torch.rand(64), 1e-5)
        self.linear = make_linear(weight, torch.rand(64), quantize)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.linear(self.norm(x))


class Talkative(Part):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, str]:
        return super().forward(x), "and more"


@pytest.mark.parametrize(
    ("weight", "quantize"),
    [
        (torch.randn(64, 64).half().float(), None),
        (torch.randn(64, 64), None),
        pytest.param(torch.randn(64, 64).bfloat16(), None, marks=needs_bfloat16_units),
        (torch.randn(64, 64), "bitsandbytes"),
        (torch.randn(64, 64), "int8-dynamic"),
    ],
    ids=["float16", "float32", "bfloat16", "bitsandbytes", "int8-dynamic"],
)
@torch.inference_mode()
def test_any_number_of_rows_gives_the_same_as_the_module(weight: torch.Tensor, quantize: str | None) -> None:
    part = Part(weight, quantize)
    call = traced(part, 1, EXAMPLE)
    assert call is not part
    for num_rows in (1, 2, 7, 33, 1):
        x = torch.randn(num_rows, 64)
        torch.testing.assert_close(call(x), part(x))


def test_ranks_that_meet_inside_are_not_recorded() -> None:
    part = Part(torch.randn(64, 64))
    assert traced(part, 2, EXAMPLE) is part


def test_what_chooses_its_kernel_by_the_rows_is_not_recorded() -> None:
    part = Part(torch.randn(64, 64), "bitsandbytes-nf4")
    assert isinstance(part.linear, FourBitLinear)
    assert traced(part, 1, EXAMPLE) is part


def test_a_part_that_cannot_be_recorded_stays() -> None:
    part = Talkative(torch.randn(64, 64).half().float())
    assert traced(part, 1, EXAMPLE) is part

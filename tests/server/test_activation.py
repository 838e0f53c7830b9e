"""GELU is the one that BLOOM was trained with, as exact as PyTorch's; a gate is the half of the outputs that comes first."""

import pytest
import torch
import torch.nn.functional as F

from text_generation_server.layers.activation import Activation, gelu


@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0, 1e4])
def test_it_is_as_exact_as_pytorchs(scale: float) -> None:
    x = torch.randn(64, 256) * scale
    exact = F.gelu(x.double(), approximate="tanh")
    torch.testing.assert_close(gelu(x), exact.float(), rtol=1e-6, atol=1e-6)


def test_its_input_stays_as_it_is_and_other_types_are_taken() -> None:
    x = torch.randn(4, 8)
    before = x.clone()
    gelu(x)
    assert torch.equal(x, before)
    assert torch.equal(gelu(x.bfloat16()), F.gelu(x.bfloat16(), approximate="tanh"))


def test_a_gate_is_the_first_half_of_the_outputs() -> None:
    x = torch.tensor([[-1.0, 20.0, 3.0, 4.0]])
    torch.testing.assert_close(Activation.SILU_GATE.apply(x), torch.tensor([[-0.2689414 * 3, 80.0]]))
    assert torch.equal(Activation.NONE.apply(x), x)

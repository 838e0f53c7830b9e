"""Matrices published in 16 bits are kept in 16 bits on CPUs, and every product stays a float32 product."""

import pytest
import torch
import torch.nn.functional as F

from text_generation_server.layers import narrow
from text_generation_server.layers.linear import make_linear
from text_generation_server.layers.narrow import NarrowLinear, narrow_exponent
from text_generation_server.layers.packed import PackedLinear

pytestmark = pytest.mark.skipif(not narrow.IS_SUPPORTED, reason="FBGEMM is for x86 processors only")


def published(dtype: torch.dtype, *shape: int, spread: float = 0.02) -> torch.Tensor:
    return (torch.randn(*shape) * spread).to(dtype).float()


@pytest.mark.parametrize("num_rows", [0, 1, 3, 16, 40])
@pytest.mark.parametrize("shape", [(24, 16), (17, 33), (1, 7), (250, 64)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_multiplies_and_adds_its_bias(dtype: torch.dtype, shape: tuple[int, int], num_rows: int) -> None:
    weight, bias = published(dtype, *shape), torch.randn(shape[0])
    x = torch.randn(2, num_rows, 2 * shape[1])[..., : shape[1]]
    for own_bias in (None, bias):
        linear = make_linear(weight, own_bias)
        assert type(linear) is NarrowLinear
        torch.testing.assert_close(linear(x), F.linear(x, weight, own_bias))
        assert linear.weight_bytes == weight.nbytes // 2


def test_a_matrix_of_many_rows_is_packed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrow, "MAX_PACKED_ROWS", 10)
    for weight, bias in ((published(torch.float16, 31, 16), None), (published(torch.bfloat16, 40, 16), torch.randn(40))):
        linear, x = make_linear(weight, bias), torch.randn(3, 16)
        assert type(linear) is NarrowLinear and len(linear.parts) == 4
        torch.testing.assert_close(linear(x), F.linear(x, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_are_as_exact_as_float32s(dtype: torch.dtype) -> None:
    """Against float64: narrow weights may not cost a digit, and a column scaled far down shows the lost ones at once."""
    weight = published(dtype, 64, 512)
    weight[:, ::2] *= 2.0**-12
    x = torch.randn(4, 512)
    x[:, 1::2] *= 2.0**-12
    exponent = narrow_exponent(weight)
    assert exponent is not None
    exact = x.double() @ weight.double().t()
    error = (NarrowLinear(weight, None, exponent)(x) - exact).abs().max()
    assert error <= 4 * (F.linear(x, weight) - exact).abs().max()


def test_a_matrix_that_would_change_stays_in_float32() -> None:
    weight = published(torch.bfloat16, 600, 16)
    weight[599, 15] = 0.01  # one entry of all, in the last row
    assert narrow_exponent(weight) is None
    assert type(make_linear(weight, None)) is PackedLinear


@pytest.mark.parametrize(
    "entries",
    [
        [0.0, 0.0],
        [float("inf"), 1.0],
        [float("nan"), 1.0],
        [1.0, 2.0**-40],  # bfloat16 has both, float16 has not, whatever it is multiplied by
    ],
)
def test_what_float16_cannot_say_is_left_alone(entries: list[float]) -> None:
    assert narrow_exponent(torch.tensor([entries])) is None


def test_a_power_of_two_makes_room_for_weights_that_are_large_or_small() -> None:
    for factor in (2.0**20, 2.0**-30):
        weight = published(torch.bfloat16, 8, 8, spread=1.0) * factor
        exponent = narrow_exponent(weight)
        assert exponent is not None and exponent != 0
        x = torch.randn(3, 8)
        # sums of another order differ by roundings of the terms, so the tolerance is one of terms of size 1
        torch.testing.assert_close(NarrowLinear(weight, None, exponent)(x) / factor, F.linear(x, weight / factor))

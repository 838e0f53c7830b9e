"""Whatever the storage and the processor, a matrix in blocks multiplies, adds its bias and applies its activation, and no row
depends on another."""

import pytest
import torch
import torch.nn.functional as F

from processors import needs_cpu_kernels
from text_generation_server import cpu_kernels
from text_generation_server.device import cpu_flags
from text_generation_server.layers.activation import Activation
from text_generation_server.layers.blocked import DTYPES, BlockedLinear, Kind, is_exact_in, kind_of
from text_generation_server.layers.normed import LayerNorm, NormedLinear, add_and_norm
from text_generation_server.layers.rms_norm import RmsNorm

pytestmark = needs_cpu_kernels

VARIANTS = cpu_kernels.variants(cpu_flags())
SHAPES = [(64, 64), (24, 16), (17, 33), (2, 7), (250, 64), (190, 40), (96, 1000)]
EXACT = {Kind.FLOAT32: 1e-6, Kind.FLOAT16: 1e-6, Kind.BFLOAT16: 1e-6}
ERRORS = EXACT | {Kind.BFLOAT16_UNITS: 4e-3, Kind.INT8: 1e-2, Kind.INT8_TWO_DIGITS: 6e-3}  # beside the sizes of what is added

each_variant = pytest.mark.parametrize("variant", VARIANTS)
each_kind = pytest.mark.parametrize("kind", Kind)


def make(variant: str, kind: Kind, weight: torch.Tensor, bias: torch.Tensor | None, activation: Activation) -> BlockedLinear:
    library = cpu_kernels.open_library(variant)
    if not library.inputs_together(kind):
        pytest.skip(f"{variant} has no {kind.name}")
    return BlockedLinear(weight, bias, kind, activation, library)


def random_weight(kind: Kind, *shape: int) -> torch.Tensor:
    """Numbers that the kind can say, if it is one of 16 bits."""
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(shape[0]))
    return weight.to(DTYPES[kind]) if kind in (Kind.FLOAT16, Kind.BFLOAT16, Kind.BFLOAT16_UNITS) else weight


@each_variant
@each_kind
@pytest.mark.parametrize("activation", Activation)
def test_it_multiplies_adds_and_activates(variant: str, kind: Kind, activation: Activation) -> None:
    generator = torch.Generator().manual_seed(1)
    for num_outputs, num_inputs in SHAPES:
        if activation is Activation.SILU_GATE and num_outputs % 2:
            continue
        weight, bias = random_weight(kind, num_outputs, num_inputs), torch.randn(num_outputs, generator=generator)
        for own_bias in (None, bias):
            linear = make(variant, kind, weight, own_bias, activation)
            for num_rows in (0, 1, 2, 3, 5, 6, 7, 13, 100):
                x = torch.randn(num_rows, num_inputs, generator=generator)
                product = F.linear(x.double(), weight.double(), None if own_bias is None else own_bias.double())
                exact, sizes = activation.apply(product), F.linear(x.abs(), weight.float().abs())
                if activation is Activation.SILU_GATE:  # an error of one half is multiplied by the other
                    sizes = sizes * (1 + product.abs().amax()) if num_rows else sizes
                assert linear(x).shape == exact.shape
                assert (linear(x) - exact).norm() <= ERRORS[kind] * sizes.norm()


@each_variant
@each_kind
def test_a_row_is_the_same_in_any_company_shape_and_place(variant: str, kind: Kind) -> None:
    linear = make(variant, kind, random_weight(kind, 70, 130), torch.ones(70), Activation.GELU)
    x = torch.randn(105, 130, generator=torch.Generator().manual_seed(2))
    x[3] *= 1000.0
    alone = torch.cat([linear(row.unsqueeze(0)) for row in x])
    assert torch.equal(linear(x), alone)
    assert torch.equal(linear(x.view(3, 5, 7, 130)[:, ::2]), alone.view(3, 5, 7, 70)[:, ::2])
    assert torch.equal(linear(torch.stack([x, x], dim=2)[..., 1]), alone)


@each_variant
def test_zeros_and_large_entries_are_no_trouble_for_int8(variant: str) -> None:
    weight, x = torch.randn(64, 128, generator=torch.Generator().manual_seed(1)), torch.ones(4, 128)
    weight[7], x[:, 5] = 0, 60.0
    linear = make(variant, Kind.INT8_TWO_DIGITS, weight, None, Activation.NONE)
    exact = F.linear(x, weight)
    assert (linear(x) - exact).norm() < 0.01 * exact.norm()
    assert torch.equal(linear(x)[:, 7], torch.zeros(4))
    assert torch.equal(linear(torch.zeros(2, 128)), torch.zeros(2, 64))


@each_variant
@pytest.mark.parametrize("kind", [Kind.FLOAT32, Kind.INT8])
def test_a_norm_and_a_sum_before_it_are_those_of_pytorch(variant: str, kind: Kind) -> None:
    weight, scale, shift = random_weight(kind, 40, 96), torch.rand(96), torch.randn(96)
    for norm in (RmsNorm(scale, 0.1), LayerNorm(scale, shift, 0.1)):
        linear = make(variant, kind, weight, None, Activation.NONE)
        normed_linear = NormedLinear(norm, linear)
        for num_rows in (1, 9):
            hidden, update = torch.randn(2, num_rows, 96)
            for own_update in (None, update):
                total, normed = add_and_norm(norm, hidden, own_update)
                found_total, found = normed_linear(hidden.clone(), own_update)
                torch.testing.assert_close(found_total, total)
                torch.testing.assert_close(found, linear(normed), rtol=1e-4, atol=0.1 if kind is Kind.INT8 else 1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_by_weights_of_16_bits_are_as_exact_as_float32s(dtype: torch.dtype) -> None:
    """Against float64: columns scaled far down show lost digits at once."""
    weight = torch.randn(64, 512).to(dtype).float()
    x = torch.randn(4, 512)
    x[:, 1::2] *= 2.0**-12
    kind = kind_of(weight, None, units=True)
    assert DTYPES[kind].itemsize == 2
    exact = x.double() @ weight.double().t()
    linear = make(VARIANTS[0], kind, weight, None, Activation.NONE)
    assert linear.weight_bytes == weight.nbytes // 2
    assert (linear(x) - exact).abs().max() <= 4 * (F.linear(x, weight) - exact).abs().max()


def test_weights_are_stored_in_as_few_bytes_as_their_numbers_need() -> None:
    weight = torch.randn(600, 16)
    assert kind_of(weight, None, units=True) is Kind.FLOAT32
    assert kind_of(weight.half().float(), None, units=True) is Kind.FLOAT16
    assert kind_of(weight.half(), None, units=True) is Kind.FLOAT16
    rounded = (weight * 1e30).bfloat16().float()  # beyond what float16 reaches
    assert kind_of(rounded, None, units=True) is Kind.BFLOAT16
    rounded[599, 15] = 0.01  # one entry of all, in the last row
    assert kind_of(rounded, None, units=True) is Kind.FLOAT32
    assert kind_of(weight.bfloat16(), None, units=True) is Kind.BFLOAT16_UNITS
    assert kind_of(weight.bfloat16(), None, units=False) is Kind.BFLOAT16
    assert kind_of(weight, "int8-dynamic", units=True) is Kind.INT8
    assert kind_of(weight, "bitsandbytes", units=True) is Kind.INT8_TWO_DIGITS


@pytest.mark.parametrize("entry", [float("nan"), float("inf"), 1 + 2**-20])
def test_what_16_bits_cannot_say_is_left_alone(entry: float) -> None:
    weight = torch.tensor([[entry, 0.1]])
    assert not is_exact_in(weight, torch.float16) and not is_exact_in(weight, torch.bfloat16)


def test_modules_of_other_libraries_may_give_it_other_types() -> None:
    weight = torch.randn(24, 16).half()
    linear = make(VARIANTS[0], Kind.FLOAT16, weight, None, Activation.NONE)
    x = torch.randn(2, 5, 32)[..., ::2].bfloat16()
    assert linear(x).dtype == torch.bfloat16
    torch.testing.assert_close(linear(x).float(), F.linear(x.float(), weight.float()), rtol=0.01, atol=0.01)


@each_variant
@each_kind
def test_what_is_no_number_stays_none_in_its_row(variant: str, kind: Kind) -> None:
    linear = make(variant, kind, random_weight(kind, 40, 33), None, Activation.GELU)
    x = torch.randn(3, 33)
    x[1, 4] = torch.nan
    assert linear(x)[1].isnan().all() and linear(x)[[0, 2]].isfinite().all()


def test_an_input_of_another_size_is_refused() -> None:
    linear = make(VARIANTS[0], Kind.FLOAT32, torch.randn(24, 16), None, Activation.NONE)
    with pytest.raises(ValueError, match="a matrix of 16 inputs was given 10"):
        linear(torch.randn(2, 10))
    with pytest.raises(ValueError, match="a norm of 16 numbers was given 64"):
        RmsNorm(torch.ones(16), 1e-5)(torch.randn(2, 64))


def test_tiny_weights_are_as_exact_as_others_in_int8() -> None:
    weight, x = torch.randn(16, 64) * 1e-29, torch.randn(2, 64)
    linear = make(VARIANTS[0], Kind.INT8_TWO_DIGITS, weight, None, Activation.NONE)
    exact = F.linear(x, weight)
    assert ((linear(x) - exact) * 1e29).norm() < 0.02 * (exact * 1e29).norm()


def test_another_default_type_of_pytorch_changes_nothing() -> None:
    linear = make(VARIANTS[0], Kind.FLOAT32, torch.randn(24, 16), None, Activation.NONE)
    x = torch.randn(5, 16)
    expected = linear(x)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(linear(x), expected)
    finally:
        torch.set_default_dtype(torch.float32)

"""A few rows times a matrix in bitsandbytes' formats are those rows times what bitsandbytes makes of it again."""

import pytest
import torch
import torch.nn.functional as F
from bitsandbytes import functional as bnb

from triton_interpreter import DEVICE  # isort: skip  before what has kernels
from text_generation_server.layers import matvec
from text_generation_server.layers.quantized import FourBitLinear, Int8Linear

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
OUT_FEATURES, IN_FEATURES = 70, 320  # no whole number of tiles

each_dtype = pytest.mark.parametrize("dtype", TOLERANCES)
each_number_of_rows = pytest.mark.parametrize("num_rows", [1, 8])
each_kind = pytest.mark.parametrize("kind", ["nf4", "fp4"])


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def assert_close(found: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    expected = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    assert found.dtype == x.dtype
    assert float((found.float() - expected).norm() / expected.norm()) < TOLERANCES[x.dtype]


@each_dtype
@each_number_of_rows
def test_int8(num_rows: int, dtype: torch.dtype) -> None:
    x, bias = random(num_rows, IN_FEATURES).to(DEVICE, dtype), random(OUT_FEATURES).to(DEVICE, dtype)
    weight, scales, _ = bnb.int8_vectorwise_quant(random(OUT_FEATURES, IN_FEATURES).half().to(DEVICE))
    exact = weight * scales[:, None] / 127
    assert_close(matvec.multiply_int8(x, weight, scales, bias), x, exact, bias)
    assert_close(matvec.multiply_int8(x.unsqueeze(0), weight, scales)[0], x, exact, None)


@each_kind
@each_dtype
@each_number_of_rows
def test_four_bits(num_rows: int, dtype: torch.dtype, kind: str) -> None:
    x, bias = random(num_rows, IN_FEATURES).to(DEVICE, dtype), random(OUT_FEATURES).to(DEVICE, dtype)
    packed, state = bnb.quantize_4bit(random(OUT_FEATURES, IN_FEATURES).to(DEVICE), quant_type=kind, blocksize=64)
    exact = bnb.dequantize_4bit(packed, state)
    assert_close(matvec.multiply_4bit(x, packed, state.absmax, state.code, bias), x, exact, bias)
    assert_close(matvec.multiply_4bit(x.unsqueeze(0), packed, state.absmax, state.code)[0], x, exact, None)


@each_kind
def test_a_linear_in_four_bits_says_the_same_through_either(kind: str) -> None:
    linear = FourBitLinear(random(OUT_FEATURES, IN_FEATURES).to(DEVICE), random(OUT_FEATURES).to(DEVICE), kind)
    x = random(1, 9, IN_FEATURES).to(DEVICE)
    linear.matvec = None
    by_bitsandbytes = linear(x)
    linear.matvec = matvec
    torch.testing.assert_close(linear(x[:, :8]), by_bitsandbytes[:, :8], rtol=1e-4, atol=1e-4)
    assert torch.equal(linear(x), by_bitsandbytes)  # nine rows are not few


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a GPU")
def test_int8_on_a_gpu_is_near_the_exact_product_for_few_rows_and_many() -> None:
    weight, bias = random(OUT_FEATURES, IN_FEATURES).to(DEVICE), random(OUT_FEATURES).to(DEVICE)
    linear = Int8Linear(weight, bias)
    for num_rows in (1, 8, 40):
        x = random(num_rows, IN_FEATURES).to(DEVICE, torch.float16)
        expected = F.linear(x.float(), weight, bias)
        assert float((linear(x).float() - expected).norm() / expected.norm()) < 0.02

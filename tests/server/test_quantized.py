"""8 and 4 bits: close to the float result, in less memory, and one line when bitsandbytes is not there."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from processors import needs_cpu_kernels
from runner_steps import all_logits, generate, make_runner
from text_generation_server.errors import ConfigurationError
from text_generation_server.layers.linear import make_linear
from text_generation_server.layers.quantized import FourBitLinear

pytestmark = needs_cpu_kernels  # for int8

Make = Callable[[torch.Tensor, torch.Tensor | None], torch.nn.Module]
MAKERS: dict[str, tuple[Make, float, float]] = {  # how, relative error allowed, share of float32's bytes allowed
    "int8": (lambda weight, bias: make_linear(weight, bias, "bitsandbytes"), 0.01, 0.29),
    "nf4": (lambda weight, bias: FourBitLinear(weight, bias, "nf4"), 0.12, 0.15),
    "fp4": (lambda weight, bias: FourBitLinear(weight, bias, "fp4"), 0.16, 0.15),
}


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.float() - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 17])
@pytest.mark.parametrize("kind", MAKERS)
def test_results_are_close_to_float_and_weights_are_smaller(kind: str, num_rows: int, dtype: torch.dtype) -> None:
    make, max_error, max_share = MAKERS[kind]
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(*shape, generator=generator) for shape in ((192, 128), (192,), (num_rows, 128)))
    linear = make(weight.to(dtype), bias.to(dtype))
    for b, layer in ((bias, linear), (None, make(weight.to(dtype), None))):
        found = layer(x.to(dtype))
        assert found.dtype == dtype
        assert relative_error(found, F.linear(x, weight, b)) < max_error + (0.01 if dtype == torch.bfloat16 else 0)
    assert linear.weight_bytes < max_share * weight.nbytes


def test_outliers_of_the_input_do_not_spoil_int8() -> None:
    generator = torch.Generator().manual_seed(1)
    weight, x = torch.randn(64, 128, generator=generator), torch.randn(4, 128, generator=generator)
    x[:, 5] = 60.0
    linear = make_linear(weight, None, "bitsandbytes")
    assert relative_error(linear(x), F.linear(x, weight)) < 0.01


@pytest.mark.parametrize("quantize", ["bitsandbytes", "int8-dynamic"])
def test_a_row_in_int8_is_the_same_in_any_company_and_shape(quantize: str) -> None:
    generator = torch.Generator().manual_seed(1)
    weight, x = torch.randn(64, 128, generator=generator), torch.randn(9, 128, generator=generator)
    x[3] *= 1000.0
    linear = make_linear(weight, torch.zeros(64), quantize)
    assert torch.equal(linear(x), torch.cat([linear(row.unsqueeze(0)) for row in x]))
    assert torch.equal(linear(x.view(3, 3, 128)[:, ::2]), linear(x).view(3, 3, 64)[:, ::2])
    assert linear(x[:0]).shape == (0, 64)
    assert torch.equal(linear(torch.zeros(2, 128)), torch.zeros(2, 64))


@pytest.mark.parametrize(
    ("quantize", "max_error"),
    [("bitsandbytes", 0.1), ("bitsandbytes-nf4", 0.5), ("bitsandbytes-fp4", 0.6), ("int8-dynamic", 0.1)],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantized_model_runs_and_stays_near_the_exact_one(
    random_bloom: Path, dtype: str, quantize: str, max_error: float
) -> None:
    exact, quantized = make_runner(random_bloom), make_runner(random_bloom, quantize=quantize, dtype=dtype)
    prompt = list(range(30, 50))
    assert relative_error(all_logits(quantized, prompt), all_logits(exact, prompt)) < max_error
    assert len(generate(quantized, prompt, 3)[0]) == 3
    assert quantized.model.weight_bytes < 0.7 * exact.model.weight_bytes


def test_without_bitsandbytes_one_line_says_what_to_install(random_bloom: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigurationError) as caught:
        make_runner(random_bloom, quantize="bitsandbytes-nf4")
    assert str(caught.value) == "--quantize needs bitsandbytes: pip install bitsandbytes"
    make_runner(random_bloom)

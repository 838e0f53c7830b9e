"""Whatever the storage, a linear layer multiplies; split over ranks, the parts sum or join to the whole."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from processors import needs_bfloat16_units, needs_cpu_kernels
from text_generation_server import cpu_kernels
from text_generation_server.device import has_bfloat16_units
from text_generation_server.errors import ConfigurationError
from text_generation_server.layers import linear
from text_generation_server.layers.activation import ActivatedLinear, Activation
from text_generation_server.layers.blocked import BlockedLinear, Kind
from text_generation_server.layers.linear import PlainLinear, RowLinear, load_column_linear, make_linear
from text_generation_server.layers.packed import PackedLinear
from text_generation_server.layers.quantized import FourBitLinear
from text_generation_server.parallel import Parallel
from text_generation_server.weights import Weights

CPU = torch.device("cpu")
WEIGHT, BIAS = torch.randn(24, 16), torch.randn(24)


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    save_file({"layer.weight": WEIGHT, "layer.bias": BIAS}, tmp_path / "model.safetensors")
    return Weights(tmp_path, CPU, torch.float32)


@needs_cpu_kernels
@pytest.mark.parametrize("quantize", [None, "bitsandbytes", "bitsandbytes-nf4", "bitsandbytes-fp4", "int8-dynamic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_our_kernels_multiply_by_all_but_four_bits(dtype: torch.dtype, quantize: str | None) -> None:
    is_four_bits = quantize in ("bitsandbytes-nf4", "bitsandbytes-fp4")
    assert type(make_linear(WEIGHT.to(dtype), None, quantize)) is (FourBitLinear if is_four_bits else BlockedLinear)


@needs_cpu_kernels
def test_kernels_without_bfloat16_units_widen_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "library", lambda: cpu_kernels.open_library("avx2"))
    multiply = make_linear(WEIGHT.bfloat16(), None)
    assert isinstance(multiply, BlockedLinear) and multiply.kind is Kind.BFLOAT16


@needs_cpu_kernels
@pytest.mark.parametrize("flags", [{"avx512_bf16"}, {"avx512_bf16", "amx_bf16"}])
def test_units_for_tiles_of_bfloat16_are_left_to_those_who_know_them(
    flags: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "cpu_flags", lambda: flags)
    expected = BlockedLinear if "amx_bf16" not in flags else PackedLinear if has_bfloat16_units() else PlainLinear
    assert type(make_linear(WEIGHT.bfloat16(), None)) is expected
    assert type(make_linear(WEIGHT, None)) is BlockedLinear


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (torch.float32, PackedLinear),
        (torch.bfloat16, PackedLinear if has_bfloat16_units() else PlainLinear),
        (torch.float16, PlainLinear),
    ],
)
def test_without_our_kernels_pytorchs_own_are_taken(
    dtype: torch.dtype, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_kernels, "library", lambda: None)
    assert type(make_linear(WEIGHT.to(dtype), None)) is kind
    gated = make_linear(WEIGHT.to(dtype), BIAS.to(dtype), activation=Activation.SILU_GATE)
    assert type(gated) is ActivatedLinear and type(gated.linear) is kind
    x, weight, bias = (tensor.to(dtype) for tensor in (torch.randn(3, 16), WEIGHT, BIAS))
    expected = Activation.SILU_GATE.apply(F.linear(x.float(), weight.float(), bias.float()))
    torch.testing.assert_close(gated(x).float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("quantize", ["bitsandbytes", "int8-dynamic"])
def test_without_our_kernels_one_line_says_what_int8_needs(quantize: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "library", lambda: None)
    with pytest.raises(ConfigurationError, match=f"--quantize {quantize} on a CPU needs our kernels: an x86 processor"):
        make_linear(WEIGHT, None, quantize)


@pytest.mark.parametrize("num_rows", [1, 3, 16, 40])
@pytest.mark.parametrize("bias", [None, BIAS])
@pytest.mark.parametrize("kind", [PlainLinear, PackedLinear])
def test_a_linear_multiplies_and_adds_its_bias(kind: type, bias: torch.Tensor | None, num_rows: int) -> None:
    x = torch.randn(num_rows, 16)
    multiply = kind(WEIGHT, bias)
    torch.testing.assert_close(multiply(x), F.linear(x, WEIGHT, bias))
    assert multiply.weight_bytes == WEIGHT.nbytes


@pytest.mark.parametrize("num_rows", [0, 1, 5, 40])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16_units)])
def test_a_packed_matrix_multiplies_what_modules_of_other_libraries_give_it(dtype: torch.dtype, num_rows: int) -> None:
    x = torch.randn(2, num_rows, 32)[..., ::2].to(dtype)
    multiply = PackedLinear(WEIGHT.to(dtype), BIAS)
    expected = F.linear(x.float(), WEIGHT.to(dtype).float(), BIAS.to(dtype).float())
    for own_x in (x, x.float()):
        output = multiply(own_x)
        assert output.dtype == own_x.dtype
        torch.testing.assert_close(output.float(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


def test_ranks_outputs_of_a_column_linear_join_to_the_whole(weights: Weights) -> None:
    x = torch.randn(5, 16)
    parts = [
        load_column_linear(weights, "layer", 24, 16, Parallel(rank, 2).split(24, "rows"), None)(x) for rank in range(2)
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), F.linear(x, WEIGHT, BIAS))


def test_ranks_outputs_of_a_row_linear_sum_to_the_whole_with_one_bias(weights: Weights) -> None:
    x = torch.randn(5, 16)
    parts = []
    for rank in range(2):
        columns = Parallel(rank, 2).split(16, "columns")
        multiply = RowLinear(weights, "layer", 24, 16, columns, Parallel(rank, 2), None).linear
        parts.append(multiply(x[:, columns]))
    torch.testing.assert_close(parts[0] + parts[1], F.linear(x, WEIGHT, BIAS))


def test_a_row_linear_on_one_rank_is_whole(weights: Weights) -> None:
    x = torch.randn(5, 16)
    whole = RowLinear(weights, "layer", 24, 16, slice(0, 16), Parallel(), None)
    torch.testing.assert_close(whole(x), F.linear(x, WEIGHT, BIAS))

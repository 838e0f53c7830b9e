"""Whatever the storage, a linear layer multiplies; split over ranks, the parts sum or join to the whole."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from processors import needs_bfloat16_units
from text_generation_server.device import has_bfloat16_units
from text_generation_server.layers.int8_cpu import DynamicInt8Linear, Int8CpuLinear
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


@pytest.mark.parametrize(
    ("dtype", "quantize", "kind"),
    [
        (torch.float32, None, PackedLinear),
        (torch.bfloat16, None, PackedLinear if has_bfloat16_units() else PlainLinear),
        (torch.float16, None, PlainLinear),
        (torch.float32, "bitsandbytes", Int8CpuLinear),
        (torch.float32, "bitsandbytes-nf4", FourBitLinear),
        (torch.float32, "bitsandbytes-fp4", FourBitLinear),
        (torch.float32, "int8-dynamic", DynamicInt8Linear),
    ],
)
def test_the_storage_asked_for_is_made(dtype: torch.dtype, quantize: str | None, kind: type) -> None:
    assert type(make_linear(torch.randn(64, 64, dtype=dtype), None, quantize)) is kind


@pytest.mark.parametrize("num_rows", [1, 3, 16, 40])
@pytest.mark.parametrize("bias", [None, BIAS])
@pytest.mark.parametrize("kind", [PlainLinear, PackedLinear])
def test_a_linear_multiplies_and_adds_its_bias(kind: type, bias: torch.Tensor | None, num_rows: int) -> None:
    x = torch.randn(num_rows, 16)
    linear = kind(WEIGHT, bias)
    torch.testing.assert_close(linear(x), F.linear(x, WEIGHT, bias))
    assert linear.weight_bytes == WEIGHT.nbytes


@pytest.mark.parametrize("num_rows", [0, 1, 5, 40])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16_units)])
def test_a_packed_matrix_multiplies_what_modules_of_other_libraries_give_it(dtype: torch.dtype, num_rows: int) -> None:
    x = torch.randn(2, num_rows, 32)[..., ::2].to(dtype)
    linear = PackedLinear(WEIGHT.to(dtype), BIAS)
    expected = F.linear(x.float(), WEIGHT.to(dtype).float(), BIAS.to(dtype).float())
    for own_x in (x, x.float()):
        output = linear(own_x)
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
        linear = RowLinear(weights, "layer", 24, 16, columns, Parallel(rank, 2), None).linear
        parts.append(linear(x[:, columns]))
    torch.testing.assert_close(parts[0] + parts[1], F.linear(x, WEIGHT, BIAS))


def test_a_row_linear_on_one_rank_is_whole(weights: Weights) -> None:
    x = torch.randn(5, 16)
    linear = RowLinear(weights, "layer", 24, 16, slice(0, 16), Parallel(), None)
    torch.testing.assert_close(linear(x), F.linear(x, WEIGHT, BIAS))

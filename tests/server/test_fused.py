"""A fused kernel says what the steps that it stands for say, one after the other, in PyTorch."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from triton_interpreter import DEVICE  # isort: skip  before what has kernels
from runner_steps import all_logits, make_runner
from text_generation_server import cpu_kernels
from text_generation_server.layers import fused, normed
from text_generation_server.layers.fused import add_and_norm
from tiny_models import save_random_bloom

TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
SIZE = 1100  # no whole number of tiles, and no power of two

each_dtype = pytest.mark.parametrize("dtype", TOLERANCES)


def random(*shapes: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(*shape, generator=generator).to(DEVICE, dtype) for shape in shapes]


def assert_close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


@each_dtype
def test_add_and_norm(dtype: torch.dtype) -> None:
    x, residual, weight, bias = random((3, SIZE), (3, SIZE), (SIZE,), (SIZE,), dtype=dtype)
    x += 5
    total, normed = add_and_norm(x, residual, weight, bias, 0.1)
    assert_close(total, x.float() + residual.float(), dtype)
    assert_close(normed, F.layer_norm(total.float(), (SIZE,), weight.float(), bias.float(), 0.1), dtype)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="the runner here is one on a CPU")
@pytest.mark.parametrize("residual_after_layer_norm", [False, True])
def test_a_bloom_that_uses_it_gives_the_same_logits(
    tmp_path: Path, residual_after_layer_norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_random_bloom(tmp_path, 4, 2)
    config = json.loads((folder / "config.json").read_text())
    config["apply_residual_connection_post_layernorm"] = residual_after_layer_norm
    (folder / "config.json").write_text(json.dumps(config))
    prompt = [5, 17, 80, 3]
    expected = all_logits(make_runner(folder), prompt)
    monkeypatch.setattr(normed, "_import_fused", lambda device: fused)
    monkeypatch.setattr(cpu_kernels, "library", lambda: None)  # they would take the layer norms' place
    torch.testing.assert_close(all_logits(make_runner(folder), prompt), expected, rtol=1e-5, atol=1e-4)

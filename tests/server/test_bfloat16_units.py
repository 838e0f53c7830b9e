"""On CPUs that multiply bfloat16 our own models leave all but matrices in float32, and come nearer to float32 by it."""

from pathlib import Path

import pytest
import torch
from reference import Reference
from transformers import AutoModelForCausalLM

from processors import needs_bfloat16_units
from random_models import save_random_model
from runner_steps import all_logits, generate, make_runner
from text_generation_server import cpu_kernels
from tiny_models import save_random_bloom

pytestmark = needs_bfloat16_units
PROMPT = [1, *range(40, 60), 9, 9, 250, 17]


@pytest.fixture(scope="module", params=["bloom", "qwen2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    if request.param == "bloom":
        return save_random_bloom(path, num_heads=4, head_dim=16)
    return save_random_model(path, request.param, hidden_size=64)


@torch.inference_mode()
def test_logits_are_nearer_to_float32_than_those_of_transformers_in_bfloat16(folder: Path) -> None:
    exact = Reference(folder).model(torch.tensor([PROMPT])).logits[0]
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)(torch.tensor([PROMPT])).logits[0]
    ours = all_logits(make_runner(folder, dtype="bfloat16"), PROMPT)
    assert 0 < (ours - exact).norm() < (theirs.float() - exact).norm()


def test_keys_and_values_are_kept_as_our_kernels_read_them_unless_fewer_bits_are_asked_for(folder: Path) -> None:
    runner = make_runner(folder, dtype="bfloat16")
    assert runner.cache.dtype == (torch.bfloat16 if cpu_kernels.library() else torch.float32)
    assert make_runner(folder, dtype="float32").cache.dtype == torch.float32
    smaller = make_runner(folder, dtype="bfloat16", kv_cache_dtype="fp8_e4m3fn")
    assert smaller.cache.dtype == torch.float8_e4m3fn
    assert len(generate(smaller, PROMPT, 4)[0]) == 4

"""Kernels are used on GPUs that have what they need, nowhere else, and they compile for these."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from text_generation_server import kernels
from text_generation_server.attention import make_attention
from text_generation_server.attention.paged_cpu import CpuAttention
from text_generation_server.attention.sdpa import PagedAttention
from text_generation_server.kv_cache import KVCache, KVShape

PROGRAM = Path(__file__).parent.parent / "compile_kernels.py"
GPU = torch.device("cuda", 7)  # which none is asked for


@pytest.fixture
def capability(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: request.param)
    kernels.run_on.cache_clear()
    yield
    kernels.run_on.cache_clear()


@pytest.mark.parametrize(
    ("capability", "runs", "reads_float8"),
    [((7, 5), False, False), ((8, 0), True, False), ((8, 9), True, True), ((9, 0), True, True)],
    indirect=["capability"],
)
def test_gpus_run_kernels_from_8_0_and_read_float8_from_8_9_on(
    capability: None, runs: bool, reads_float8: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = pytest.importorskip("triton.runtime")
    monkeypatch.setattr(runtime.driver, "_active", SimpleNamespace(get_current_target=lambda: None))
    assert (kernels.run_on(GPU), kernels.read_float8_on(GPU)) == (runs, reads_float8)


@pytest.mark.parametrize("capability", [(9, 0)], indirect=True)
def test_where_triton_does_not_work_one_line_says_so(
    capability: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "triton.runtime", None)
    assert not kernels.run_on(GPU) and not kernels.run_on(GPU)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("no kernels of our own on cuda:7, answers will come slower: ")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
def test_a_cpu_runs_none(dtype: torch.dtype) -> None:
    cache = KVCache([KVShape(1, 16, 16)], 2, 16, dtype, torch.device("cpu"))
    assert isinstance(make_attention(cache), PagedAttention | CpuAttention)


def test_all_of_them_compile_and_fit_where_there_is_no_gpu(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(PROGRAM), "90"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    compiled = {line.split()[0] for line in done.stdout.splitlines()}
    assert compiled == {"write_kernel", "attend_kernel", "combine_kernel", "int8_kernel", "four_bit_kernel", "norm_kernel"}

"""Device, dtype and threads are chosen as asked, and memory is measured above the bare process."""

import mmap
from pathlib import Path

import pytest
import torch

from text_generation_server.device import PeakMemory, choose_device, choose_dtype, set_num_threads

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_the_dtype_asked_for_is_taken(name: str) -> None:
    assert choose_dtype(name, CPU) == getattr(torch, name)


def test_a_cpu_computes_in_bfloat16_only_where_it_can_in_hardware() -> None:
    words = Path("/proc/cpuinfo").read_text().split()
    has_units = "avx512_bf16" in words or "amx_bf16" in words
    assert choose_dtype(None, CPU) == (torch.bfloat16 if has_units else torch.float32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_cpu_is_taken() -> None:
    assert choose_device() == CPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_each_local_rank_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", str(torch.cuda.device_count()))
    assert choose_device() == torch.device("cuda", 0)
    assert choose_dtype(None, torch.device("cuda")) in (torch.bfloat16, torch.float16)


def test_threads_are_those_asked_for_or_the_ranks_share_of_the_cores() -> None:
    before = torch.get_num_threads()
    try:
        assert set_num_threads(2, 1, CPU) == 2
        assert set_num_threads(None, 10_000, CPU) == 1
        assert set_num_threads(None, 1, torch.device("cuda")) == 1
    finally:
        torch.set_num_threads(before)


def test_the_peak_is_what_was_held_at_once() -> None:
    peak = PeakMemory()
    for _ in range(3):
        held = mmap.mmap(-1, 40 * 2**20)  # straight from the system: the heap may hold freed pages that count already
        torch.frombuffer(held, dtype=torch.uint8).fill_(1)
        del held
    assert 35 * 2**20 < peak.read_bytes() < 70 * 2**20

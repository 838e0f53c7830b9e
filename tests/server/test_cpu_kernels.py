"""The library of CPU kernels is the best one that the processor runs, and shares PyTorch's threads."""

import sysconfig
from pathlib import Path

import pytest

from processors import needs_cpu_kernels
from text_generation_server import cpu_kernels
from text_generation_server.cpu_kernels import AVX2, AVX512, open_library, variants
from text_generation_server.device import cpu_flags


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (set(), []),
        ({"avx2"}, []),
        (AVX2, ["avx2"]),
        (AVX512, ["avx512", "avx2"]),
        (AVX512 | {"avx512_vnni"}, ["avx512_vnni", "avx512", "avx2"]),
        (AVX512 | {"avx512_bf16"}, ["avx512", "avx2"]),
        (AVX512 | {"avx512_vnni", "avx512_bf16", "amx_bf16"}, ["avx512_bf16", "avx512_vnni", "avx512", "avx2"]),
    ],
)
def test_a_processor_gets_what_it_can_run_the_best_first(flags: set[str], expected: list[str]) -> None:
    assert variants(flags) == expected


@needs_cpu_kernels
def test_all_kinds_were_made() -> None:
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    made = {path.name for path in Path(cpu_kernels.__file__).parent.glob(f"kernels_*{suffix}")}
    assert made == {f"kernels_{variant}{suffix}" for variant in cpu_kernels.VARIANTS}


@needs_cpu_kernels
def test_what_was_not_made_is_passed_over(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(cpu_kernels, "VARIANTS", {"from_the_future": set(), **cpu_kernels.VARIANTS})
    assert variants(cpu_flags())[0] == "from_the_future"
    with pytest.raises(OSError, match="from_the_future"):
        open_library("from_the_future")
    assert cpu_kernels.library.__wrapped__() is not None
    monkeypatch.setattr(cpu_kernels, "VARIANTS", {"from_the_future": set()})
    assert cpu_kernels.library.__wrapped__() is None
    assert "where there is a C compiler" in caplog.text


def test_another_processor_has_none_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cpu_kernels, "cpu_flags", set)
    assert cpu_kernels.library.__wrapped__() is None
    assert "no CPU kernels of our own, answers will come slower: they are for x86 processors" in caplog.text

"""Our kernels for CPUs: a library written in C, made when this package is installed, and called with addresses.

In: what the processor can. Out: the library's functions, or None where there is none that runs. Without it PyTorch's own
operations do the same, more slowly.
"""

import ctypes
import functools
import logging
import sysconfig
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from text_generation_server.device import cpu_flags

logger = logging.getLogger(__name__)

AVX2 = {"avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "abm"}
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
# From the best one down, what each needs.
VARIANTS = {
    "avx512_bf16": AVX512 | {"avx512_vnni", "avx512_bf16"},
    "avx512_vnni": AVX512 | {"avx512_vnni"},
    "avx512": AVX512,
    "avx2": AVX2,
}

OPENMP = ("libgomp", "libiomp5", "libomp")

Address, Number = ctypes.c_void_p, ctypes.c_int64


class Norm(ctypes.Structure):
    """Without a bias it is an RMSNorm, else a LayerNorm."""

    _fields_ = (("weight", Address), ("bias", Address), ("epsilon", ctypes.c_float))


class Matrix(ctypes.Structure):
    """A linear layer. `num_outputs` are those of whole blocks, `out_size` the numbers that a row becomes."""

    _fields_ = (
        *((name, Number) for name in ("kind", "activation", "num_inputs", "num_outputs", "out_size")),
        *((name, Address) for name in ("blocks", "bias", "scales", "input_sums")),
    )


class Link(ctypes.Structure):
    """One of several products in turn, and the norm before it, if there is one."""

    _fields_ = (("matrix", Address), ("norm", Address))


class Library:
    """The functions of server/kernels, which say there what they do. They take addresses of numbers that lie together as
    they say, and use as many threads as PyTorch does."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            OSError: it cannot be loaded.
        """
        library = ctypes.CDLL(str(path), mode=ctypes.RTLD_LOCAL)
        self.multiply = _function(library.multiply, *[Address] * 3, Number, Address, Address, Number)
        self.multiply_in_turn = _function(library.multiply_in_turn, Address, Number, *[Address] * 3, Number)
        self.norm_rows = _function(library.norm_rows, Address, Number, Address, Address, Number)
        self.attend = _function(library.attend, *[Address] * 5)
        self.find_likeliest = _function(library.find_likeliest, Address, Number, Number, *[Address] * 3)
        self.rotate = _function(library.rotate, Address, *[Number] * 4, Address)
        self.inputs_together = _function(library.inputs_together, Number)
        self.inputs_together.restype = Number


@functools.cache
def library() -> Library | None:
    """The best one for this processor."""
    reason = "they are for x86 processors with AVX2 or AVX-512"
    for variant in variants(cpu_flags()):
        try:
            return open_library(variant)
        except OSError as error:
            reason = f"{error}; they are made when this package is installed where there is a C compiler"
    logger.warning("no CPU kernels of our own, answers will come slower: %s", reason)
    return None


def variants(flags: Collection[str]) -> list[str]:
    """What a processor with these flags runs, the best one first."""
    return [variant for variant, needed in VARIANTS.items() if needed <= set(flags)]


def open_library(variant: str) -> Library:
    """
    Raises:
        OSError: it was not made, or does not fit to this PyTorch.
    """
    _share_openmp()
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    return Library(Path(__file__).parent / f"kernels_{variant}{suffix}")


def _function(function: Any, *arguments: type) -> Any:
    function.argtypes = arguments
    function.restype = None
    return function


def _share_openmp() -> None:
    """Lets the library find PyTorch's OpenMP, which it is made without: two would be two teams of threads on the same cores."""
    mapped = {line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    found = [path for path in mapped if any(name in Path(path).name for name in OPENMP)]
    if not found:
        raise OSError("PyTorch runs without OpenMP")
    # Other libraries may have brought one of their own: PyTorch's lies with it.
    ctypes.CDLL(max(found, key=lambda path: Path(torch.__file__).parent in Path(path).parents), mode=ctypes.RTLD_GLOBAL)


def address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()

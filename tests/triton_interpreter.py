"""Triton's kernels where there is no GPU: import this before any module that has some.

Without a GPU they run in Triton's interpreter, one program after the other in numpy. With one they are compiled and run there.
"""

import sys
from typing import Any

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _forget_triton() -> None:
    """torch imports it when transformers is imported, and then its own functions have been made for the compiler."""
    for name in [name for name in sys.modules if name.split(".")[0] == "triton" and not name.startswith("triton._C")]:
        del sys.modules[name]


with pytest.MonkeyPatch.context() as patch:  # not for longer: processes that tests start shall not inherit it
    if DEVICE.type == "cpu":
        _forget_triton()
        patch.setenv("TRITON_INTERPRET", "1")  # read where a kernel is made
    pytest.importorskip("triton.experimental.gluon")  # a first launch would import it
    from text_generation_server.attention import paged_kernels  # noqa: F401
    from text_generation_server.layers import fused, matvec  # noqa: F401

if DEVICE.type == "cpu":
    from triton import language
    from triton.runtime.interpreter import InterpreterBuilder

    multiply, widen = InterpreterBuilder.create_dot, InterpreterBuilder.create_si_to_fp

    # Of bfloat16 it keeps the bits, as integers, and Triton 3.7 takes them for the numbers in these two places.
    def _multiply(builder: Any, a: Any, b: Any, *others: Any) -> Any:
        a, b = (builder.cast_impl(x, language.float32) if x.dtype.scalar == language.bfloat16 else x for x in (a, b))
        return multiply(builder, a, b, *others)

    def _widen(builder: Any, whole: Any, dtype: Any) -> Any:
        if dtype.scalar != language.bfloat16:
            return widen(builder, whole, dtype)
        return builder.cast_impl(builder.cast_impl(whole, language.float32), dtype)

    InterpreterBuilder.create_dot, InterpreterBuilder.create_si_to_fp = _multiply, _widen

"""A program: compiles every Triton kernel for an NVIDIA GPU that need not be there, as the server would call it.

In: a compute capability, 90 say. Out: a line for each kernel with its name and its bytes of shared memory. What the
interpreter takes, the compiler may refuse.
"""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

from text_generation_server.attention.context import ForwardContext
from text_generation_server.attention.kind import AttentionKind
from text_generation_server.attention.paged_triton import TritonAttention
from text_generation_server.kv_cache import KVCache, KVShape
from text_generation_server.layers import fused, matvec

CAPABILITY = int(sys.argv[1])
MAX_SHARED_BYTES = 99 * 1024  # the smallest that a GPU of these has, of capability 8.6 or 8.9


class Absent(DriverBase):
    """The driver of a GPU that loads every kernel and runs none."""

    def __init__(self) -> None:
        self.utils = SimpleNamespace(
            get_device_properties=lambda _: {"max_shared_mem": MAX_SHARED_BYTES}, load_binary=self._load
        )

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0

    def launcher_cls(self, *_: Any) -> Callable[..., None]:
        return lambda *_: None

    def _load(self, name: str, _: bytes, shared_bytes: int, __: int) -> tuple[None, None, int, int, int]:
        print(name, shared_bytes)
        return None, None, 0, 0, 1024


def attend(lengths: list[int], cache_dtype: torch.dtype, num_programs: int, alibi: bool, kind: AttentionKind) -> None:
    num_tokens, num_decodes = sum(lengths), lengths.count(1)
    places, tables = torch.zeros(num_tokens, dtype=torch.long), torch.zeros(len(lengths), 20, dtype=torch.long)
    context = ForwardContext(places, places, tables, lengths, lengths, num_decodes, lengths, lengths)
    cache = KVCache([KVShape(2, 128, 128)], 4, 16, cache_dtype, torch.device("cpu"))
    attention = TritonAttention(cache, torch.zeros(8) if alibi else None)
    attention.num_programs = num_programs
    query, key = (torch.zeros(num_tokens, num_heads, 128, dtype=torch.bfloat16) for num_heads in (8, 2))
    attention.bind(context, torch.bfloat16)(0, query, key, key, kind)


driver.set_active(Absent())
plain, all_of_it = AttentionKind(1.0), AttentionKind(1.0, window=100, chunk=64, softcap=30.0, sinks=torch.zeros(8))
attend([1, 1], torch.float8_e4m3fn, num_programs=1000, alibi=False, kind=plain)
attend([1, 40], torch.bfloat16, num_programs=1, alibi=True, kind=all_of_it)
rows, numbers = torch.zeros(3, 1024, dtype=torch.bfloat16), torch.zeros(1024)
matvec.multiply_int8(rows, torch.zeros(1024, 1024, dtype=torch.int8), numbers, rows[0])
matvec.multiply_4bit(rows, torch.zeros(1024 * 512, dtype=torch.uint8), torch.zeros(1024 * 16), torch.zeros(16), rows[0])
fused.add_and_norm(rows, rows, rows[0], rows[0], 1e-5)

"""Paged attention by our CPU kernel: decoding sequences and prompts in one call, nothing gathered.

In: queries, keys and values of a packed batch. Out: attended values. Of a layer's keys each block is laid out anew in the
cache's memory, [head_dim, block_size]: only this module reads them.
"""

import ctypes
from collections.abc import Sequence

import torch

from text_generation_server.attention.context import ForwardContext
from text_generation_server.attention.kind import Attend, AttentionKind
from text_generation_server.cpu_kernels import Library, address
from text_generation_server.kv_cache import KVCache, KVShape

DTYPES = (torch.float32, torch.bfloat16)
MULTIPLE = 16  # of which head_dim and block_size must be one
MAX_HEAD_DIM = 256


def can_attend(shapes: Sequence[KVShape], block_size: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernel knows a cache of this type and these sizes."""
    fits = all(
        shape.key_dim == shape.value_dim and shape.key_dim % MULTIPLE == 0 and shape.key_dim <= MAX_HEAD_DIM
        for shape in shapes
    )
    return device.type == "cpu" and dtype in DTYPES and block_size % MULTIPLE == 0 and fits


class CpuAttention:
    fixed_launches = False  # there is nothing to record on a CPU

    def __init__(self, cache: KVCache, slopes: torch.Tensor | None, library: Library) -> None:
        self.cache = cache
        self.slopes = None if slopes is None else slopes.float().contiguous()
        self._call = library.attend
        layers = zip(cache.keys, cache.values, strict=True)
        self._blocks = [_Blocks(keys.data_ptr(), values.data_ptr()) for keys, values in layers]
        self._kinds: dict[int, tuple[AttentionKind, _Settings]] = {}  # of each layer, as it was asked for last

    def bind(self, context: ForwardContext, dtype: torch.dtype) -> Attend:
        """Returns the function that all layers of one forward call."""
        starts = torch.tensor([0, *context.query_lengths]).cumsum(0)
        contexts, tables, slots = torch.tensor(context.context_lengths), context.block_tables, context.slot_mapping
        sequences = _Sequences(tables.data_ptr(), tables.shape[1], starts.data_ptr(), contexts.data_ptr(), len(contexts))
        tokens = _Tokens(slots=slots.data_ptr(), num_tokens=len(slots))
        sequences.kept = starts, contexts, tables, slots  # while their addresses are used

        def attend(
            layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kind: AttentionKind
        ) -> torch.Tensor:
            dtype, shape = query.dtype, query.shape
            if not _lie_alike(query, key, value):
                query, key, value = query.float().contiguous(), key.float().contiguous(), value.float().contiguous()
            tokens.query, tokens.key, tokens.value = query.data_ptr(), key.data_ptr(), value.data_ptr()
            tokens.query_stride, tokens.head_stride, _ = query.stride()
            tokens.key_stride, tokens.value_stride = key.stride(0), value.stride(0)
            output = torch.empty(shape, dtype=torch.float32)
            settings = self._settings(layer, shape[1], kind)
            structs = settings, self._blocks[layer], tokens, sequences
            self._call(*map(ctypes.addressof, structs), output.data_ptr())
            return output if dtype == torch.float32 else output.to(dtype)

        return attend

    def _settings(self, layer: int, num_heads: int, kind: AttentionKind) -> "_Settings":
        known, settings = self._kinds.get(layer, (None, None))
        if settings is not None and (known is kind or (kind.sinks is None and known == kind)):
            return settings
        settings = self._make_settings(layer, num_heads, kind)
        self._kinds[layer] = kind, settings
        return settings

    def _make_settings(self, layer: int, num_heads: int, kind: AttentionKind) -> "_Settings":
        _, num_kv_heads, block_size, head_dim = self.cache.keys[layer].shape
        sinks = None if kind.sinks is None else kind.sinks.float().contiguous()
        settings = _Settings(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            block_size=block_size,
            is_bfloat16=self.cache.dtype == torch.bfloat16,
            window=kind.window or 0,
            chunk=kind.chunk or 0,
            scale=kind.scale,
            softcap=kind.softcap or 0.0,
            slopes=address(self.slopes),
            sinks=address(sinks),
        )
        settings.kept = sinks
        return settings


class _Settings(ctypes.Structure):
    """struct attention of server/kernels/attention.c, as those below are its others."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("num_heads", "num_kv_heads", "head_dim", "block_size", "is_bfloat16")),
        *((name, ctypes.c_int64) for name in ("window", "chunk")),
        *((name, ctypes.c_float) for name in ("scale", "softcap")),
        *((name, ctypes.c_void_p) for name in ("slopes", "sinks")),
    )


class _Blocks(ctypes.Structure):
    _fields_ = (("keys", ctypes.c_void_p), ("values", ctypes.c_void_p))


class _Tokens(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value")),
        *((name, ctypes.c_int64) for name in ("query_stride", "key_stride", "value_stride", "head_stride")),
        ("slots", ctypes.c_void_p),
        ("num_tokens", ctypes.c_int64),
    )


class _Sequences(ctypes.Structure):
    _fields_ = (
        ("tables", ctypes.c_void_p),
        ("table_width", ctypes.c_int64),
        ("starts", ctypes.c_void_p),
        ("contexts", ctypes.c_void_p),
        ("num_sequences", ctypes.c_int64),
    )


def _lie_alike(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether all are float32 [num_tokens, num_heads, head_dim], with heads equally far apart and no gaps within them."""
    within = query.stride()[1:]
    are_alike = within[1] == 1 and within == key.stride()[1:] == value.stride()[1:]
    return are_alike and query.dtype == key.dtype == value.dtype == torch.float32

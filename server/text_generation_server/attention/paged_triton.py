"""Paged attention in Triton: what GPUs run. Keys and values are read where they lie, prompt chunks and decodes in one launch.

In: queries, keys and values of a packed batch. Out: attended values. A batch of nothing but decodes takes no number from the
host that differs from step to step, so that its launches can be recorded and played again.
"""

import itertools

import torch
from triton import next_power_of_2

from text_generation_server.attention.context import ForwardContext
from text_generation_server.attention.kind import Attend, AttentionKind
from text_generation_server.attention.paged_kernels import attend_kernel, combine_kernel, write_kernel
from text_generation_server.device import send
from text_generation_server.kv_cache import KVCache, bits

DECODE_ROWS = 16  # the least that tensor cores multiply; most of them are empty, and memory is what is waited for
PREFILL_ROWS = 64
MAX_PREFILL_DIM = 256  # so many rows of larger heads, or in float32, would not fit in registers and shared memory
MAX_COLUMNS = 64
TILE_BYTES = 16 * 1024  # keys of a tile, or its values: two tiles of each fit in the shared memory of any GPU
PROGRAMS_PER_PROCESSOR = 4
MIN_SEGMENT = 128  # keys that are worth a program of their own
MAX_SEGMENTS = 32


class TritonAttention:
    """As `PagedAttention`, and to be given the same."""

    fixed_launches = True

    def __init__(self, cache: KVCache, slopes: torch.Tensor | None = None) -> None:
        self.cache = cache
        self.slopes = None if slopes is None else slopes.float()
        self.num_programs = PROGRAMS_PER_PROCESSOR * _num_processors(cache.device)

    def bind(self, context: ForwardContext, dtype: torch.dtype) -> Attend:
        """Returns the function that all layers of one forward call."""
        query_starts: torch.Tensor | None = None
        if context.num_decodes < len(context.query_lengths):
            starts = [0, *itertools.accumulate(context.query_lengths)]
            query_starts = send(starts, torch.int32, context.positions.device)

        def attend(
            layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kind: AttentionKind
        ) -> torch.Tensor:
            self._write(layer, context.slot_mapping, key, value)
            return self._attend(layer, query, kind, context, query_starts)

        return attend

    def _write(self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        key, value = _rows(self.cache.fit(key)), _rows(self.cache.fit(value))
        write_kernel[(*key.shape[:2],)](
            *map(bits, (keys, values, key, value)),
            slots,
            *key.stride()[:2],
            *value.stride()[:2],
            self.cache.block_size,
            *_dims(keys, values),
            num_warps=1,
        )

    def _attend(
        self,
        layer: int,
        query: torch.Tensor,
        kind: AttentionKind,
        context: ForwardContext,
        query_starts: torch.Tensor | None,
    ) -> torch.Tensor:
        """query [num_tokens, num_heads, key_dim] → [num_tokens, num_heads, value_dim]."""
        query, keys, values = _rows(query), self.cache.keys[layer], self.cache.values[layer]
        num_tokens, num_heads, key_dim = query.shape
        num_sequences, max_blocks = context.block_tables.shape
        group = num_heads // keys.shape[1]
        is_wide = query.dtype == torch.float32 or key_dim > MAX_PREFILL_DIM
        rows = max(DECODE_ROWS if query_starts is None or is_wide else PREFILL_ROWS, next_power_of_2(group))
        num_tiles = num_sequences if query_starts is None else num_tokens // (rows // group) + num_sequences
        num_segments = self._num_segments(num_tiles * keys.shape[1], max_blocks, kind)
        shape = (num_segments, num_tokens, num_heads, values.shape[3])
        is_split = num_segments > 1
        output = query.new_empty(shape, dtype=torch.float32 if is_split else query.dtype)
        log_sums = query.new_empty(shape[:3], dtype=torch.float32) if is_split else None
        dims = _dims(keys, values)
        attend_kernel[num_tiles, keys.shape[1], num_segments](
            output,
            log_sums,
            query,
            keys,
            values,
            context.block_tables,
            context.positions,
            query_starts,
            self.slopes,
            kind.sinks,
            num_sequences,
            num_tokens,
            context.block_tables.stride(0),
            *query.stride()[:2],
            kind.scale,
            kind.softcap,
            kind.window,
            kind.chunk,
            self.cache.block_size,
            group,
            rows,
            _num_columns(dims, query.itemsize),
            *dims,
            num_warps=4 if rows * dims[3] <= PREFILL_ROWS * 128 else 8,
            num_stages=3,
        )
        return output[0] if log_sums is None else _combine(output, log_sums, query.dtype)

    def _num_segments(self, num_programs: int, max_blocks: int, kind: AttentionKind) -> int:
        """In how many parts the keys are split, for as many programs as keep the device busy. It follows from shapes alone:
        a launch that was recorded must do for longer sequences too."""
        num_keys = min(filter(None, (max_blocks * self.cache.block_size, kind.window, kind.chunk)))
        return max(1, min(self.num_programs // num_programs, num_keys // MIN_SEGMENT, MAX_SEGMENTS))


def _combine(parts: torch.Tensor, log_sums: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """parts [num_segments, num_tokens, num_heads, value_dim], log_sums [num_segments, num_tokens, num_heads] → [num_tokens,
    num_heads, value_dim]."""
    num_segments, num_tokens, num_heads, value_dim = parts.shape
    output = parts.new_empty(parts.shape[1:], dtype=dtype)
    combine_kernel[(num_tokens * num_heads,)](
        output, parts, log_sums, num_segments, MAX_SEGMENTS, value_dim, next_power_of_2(value_dim)
    )
    return output


def _num_processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """With neighbouring numbers in the last dimension; of the others the kernels take the strides."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _dims(keys: torch.Tensor, values: torch.Tensor) -> tuple[int, int, int, int]:
    """key_dim, value_dim, and what these are padded to."""
    key_dim, value_dim = keys.shape[3], values.shape[3]
    return key_dim, value_dim, max(16, next_power_of_2(key_dim)), max(16, next_power_of_2(value_dim))


def _num_columns(dims: tuple[int, int, int, int], itemsize: int) -> int:
    return max(16, min(MAX_COLUMNS, TILE_BYTES // (max(dims) * itemsize)))

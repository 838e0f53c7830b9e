"""Attention over a block cache as Triton kernels (Tillet et al. 2019): write keys and values, attend, put parts together.

In: pointers to the tensors of `paged_triton`, which knows their shapes. Softmax is taken online, tile by tile in float32
(Dao et al. 2022, arXiv:2205.14135); a sequence's keys may be split in segments with a softmax each (Flash-Decoding).
"""

import triton
import triton.language as tl


@triton.jit
def write_kernel(
    keys: tl.tensor,  # [num_blocks, num_kv_heads, BLOCK_SIZE, KEY_DIM]
    values: tl.tensor,  # [num_blocks, num_kv_heads, BLOCK_SIZE, VALUE_DIM]
    key: tl.tensor,  # [num_tokens, num_kv_heads, KEY_DIM]
    value: tl.tensor,  # [num_tokens, num_kv_heads, VALUE_DIM]
    slots: tl.tensor,  # [num_tokens] int64
    key_token_stride: int,
    key_head_stride: int,
    value_token_stride: int,
    value_head_stride: int,
    BLOCK_SIZE: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    KEY_TILE: tl.constexpr,
    VALUE_TILE: tl.constexpr,
) -> None:
    """One token and head a program. A token with a negative slot, which is padding, is written nowhere."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(slots + token)
    row = (slot // BLOCK_SIZE * tl.num_programs(1) + head) * BLOCK_SIZE + slot % BLOCK_SIZE
    key_dims, value_dims = tl.arange(0, KEY_TILE), tl.arange(0, VALUE_TILE)
    is_key, is_value = (key_dims < KEY_DIM) & (slot >= 0), (value_dims < VALUE_DIM) & (slot >= 0)
    new_key = tl.load(key + token * key_token_stride + head * key_head_stride + key_dims, mask=is_key)
    new_value = tl.load(value + token * value_token_stride + head * value_head_stride + value_dims, mask=is_value)
    tl.store(keys + row * KEY_DIM + key_dims, new_key, mask=is_key)
    tl.store(values + row * VALUE_DIM + value_dims, new_value, mask=is_value)


@triton.jit(do_not_specialize=["num_sequences", "num_tokens", "table_stride"])
def attend_kernel(
    output: tl.tensor,  # [num_segments, num_tokens, num_heads, VALUE_DIM]
    log_sums: tl.tensor,  # [num_segments, num_tokens, num_heads] float32: weight of each segment; None where there is one
    query: tl.tensor,  # [num_tokens, num_heads, KEY_DIM]
    keys: tl.tensor,  # [num_blocks, num_kv_heads, BLOCK_SIZE, KEY_DIM]
    values: tl.tensor,  # [num_blocks, num_kv_heads, BLOCK_SIZE, VALUE_DIM]
    block_tables: tl.tensor,  # [num_sequences, max_blocks]
    positions: tl.tensor,  # [num_tokens]
    query_starts: tl.tensor,  # [num_sequences + 1] int32: each sequence's first token; None where each has one token
    slopes: tl.tensor,  # [num_heads] float32, or None
    sinks: tl.tensor,  # [num_heads], or None
    num_sequences: int,
    num_tokens: int,
    table_stride: int,
    query_token_stride: int,
    query_head_stride: int,
    scale: float,
    softcap: float,  # or None
    WINDOW: tl.constexpr,  # or None
    CHUNK: tl.constexpr,  # or None
    BLOCK_SIZE: tl.constexpr,
    GROUP: tl.constexpr,  # query heads that share a key-value head
    ROWS: tl.constexpr,  # of a tile of queries: neighbouring tokens, and of each the heads of a group
    COLUMNS: tl.constexpr,  # of a tile of keys
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    KEY_TILE: tl.constexpr,
    VALUE_TILE: tl.constexpr,
) -> None:
    """One tile of queries of one sequence, one key-value head and one segment of the keys a program."""
    queries: tl.constexpr = ROWS // GROUP
    kv_head, segment = tl.program_id(1), tl.program_id(2)
    sequence, first, end = _find_queries(query_starts, num_sequences, queries)
    if first >= end:
        return
    rows, key_dims, value_dims = tl.arange(0, ROWS), tl.arange(0, KEY_TILE), tl.arange(0, VALUE_TILE)
    token = (first + rows // GROUP).to(tl.int64)
    head = kv_head * GROUP + rows % GROUP
    is_row = (rows < queries * GROUP) & (token < end)
    is_key_dim, is_value_dim = key_dims < KEY_DIM, value_dims < VALUE_DIM
    query += token[:, None] * query_token_stride + head[:, None] * query_head_stride + key_dims[None, :]
    q = tl.load(query, mask=is_row[:, None] & is_key_dim[None, :], other=0.0)

    first_position = tl.load(positions + first).to(tl.int32)
    position = first_position + rows // GROUP
    begin, stop = _find_keys(first_position, first_position + tl.minimum(end - first, queries), WINDOW, CHUNK, COLUMNS)

    # A sink is a score like any other, met before the first key.
    maxima = tl.full([ROWS], float("-inf"), tl.float32)
    if sinks is not None:
        maxima = tl.load(sinks + head, mask=is_row & (segment == 0), other=float("-inf")).to(tl.float32)
    sums = tl.where(maxima == float("-inf"), 0.0, 1.0)
    weighted = tl.zeros([ROWS, VALUE_TILE], tl.float32)
    for start in range(begin, stop, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        is_column = column < stop
        block = tl.load(block_tables + sequence * table_stride + column // BLOCK_SIZE, mask=is_column, other=0)
        slot = (block.to(tl.int64) * tl.num_programs(1) + kv_head) * BLOCK_SIZE + column % BLOCK_SIZE
        # What is masked is never loaded: an unused slot may hold a NaN, and 0 times a NaN would be one.
        is_k, is_v = is_column[None, :] & is_key_dim[:, None], is_column[:, None] & is_value_dim[None, :]
        k = tl.load(keys + slot[None, :] * KEY_DIM + key_dims[:, None], mask=is_k, other=0.0)
        v = tl.load(values + slot[:, None] * VALUE_DIM + value_dims[None, :], mask=is_v, other=0.0)
        scores = tl.dot(q, k.to(q.dtype), input_precision="tf32x3") * scale
        if softcap is not None:
            scores = softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0)  # tanh, which the language has not
        distance = column[None, :] - position[:, None]
        if slopes is not None:
            scores += tl.load(slopes + head, mask=is_row, other=0.0)[:, None] * distance
        is_seen = is_column[None, :] & (distance <= 0)
        if WINDOW is not None:
            is_seen &= distance > -WINDOW
        if CHUNK is not None:
            is_seen &= distance >= -(position % CHUNK)[:, None]
        scores = tl.where(is_seen, scores, float("-inf"))
        new_maxima = tl.maximum(maxima, tl.max(scores, 1))
        shift = tl.where(new_maxima == float("-inf"), 0.0, new_maxima)  # a row that sees nothing yet: no -inf less -inf
        weights, rescale = tl.exp(scores - shift[:, None]), tl.exp(maxima - shift)
        weighted *= rescale[:, None]
        weighted = tl.dot(weights.to(q.dtype), v.to(q.dtype), weighted, input_precision="tf32x3")
        sums = sums * rescale + tl.sum(weights, 1)
        maxima = new_maxima

    sums = tl.where(sums == 0.0, 1.0, sums)  # of a segment that begins after the last key
    row = (segment * num_tokens + token) * (tl.num_programs(1) * GROUP) + head
    output += row[:, None] * VALUE_DIM + value_dims[None, :]
    tl.store(output, weighted / sums[:, None], mask=is_row[:, None] & is_value_dim[None, :])
    if log_sums is not None:
        tl.store(log_sums + row, maxima + tl.log(sums), mask=is_row)


@triton.jit
def combine_kernel(
    output: tl.tensor,  # [num_rows, VALUE_DIM]
    parts: tl.tensor,  # [num_segments, num_rows, VALUE_DIM] float32
    log_sums: tl.tensor,  # [num_segments, num_rows] float32
    num_segments: int,
    SEGMENTS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_TILE: tl.constexpr,
) -> None:
    """One row a program: the mean of its segments by their sums of exponentials, one of which at least is not 0."""
    row, num_rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    segments, dims = tl.arange(0, SEGMENTS), tl.arange(0, VALUE_TILE)
    is_segment, is_dim = segments < num_segments, dims < VALUE_DIM
    logs = tl.load(log_sums + segments * num_rows + row, mask=is_segment, other=float("-inf"))
    weights = tl.exp(logs - tl.max(logs, 0))
    places = (segments * num_rows + row)[:, None] * VALUE_DIM + dims[None, :]
    part = tl.load(parts + places, mask=is_segment[:, None] & is_dim[None, :], other=0.0)
    combined = tl.sum(part * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(output + row * VALUE_DIM + dims, combined, mask=is_dim)


@triton.jit
def _find_queries(query_starts: tl.tensor, num_sequences: int, QUERIES: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """This program's sequence, the first token of its tile and the end of its sequence's tokens.

    Sequence i has its tiles from query_starts[i] // QUERIES + i on: there are places enough for a last tile that is not
    full, without a count of the tiles. A place that none needs has its first token past the end.
    """
    tile = tl.program_id(0)
    if query_starts is None:
        return tile, tile, tile + 1
    else:
        low = 0
        high = num_sequences
        while high - low > 1:
            middle = (low + high) // 2
            if tl.load(query_starts + middle) // QUERIES + middle <= tile:
                low = middle
            else:
                high = middle
        start, end = tl.load(query_starts + low), tl.load(query_starts + low + 1)
        return low, start + (tile - start // QUERIES - low) * QUERIES, end


@triton.jit
def _find_keys(
    first_position: int, end_position: int, WINDOW: tl.constexpr, CHUNK: tl.constexpr, COLUMNS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """[begin, stop): this program's segment of all keys that one of its positions sees, begun at a whole tile."""
    begin = 0
    if WINDOW is not None:
        begin = tl.maximum(begin, first_position - WINDOW + 1)
    if CHUNK is not None:
        begin = tl.maximum(begin, first_position // CHUNK * CHUNK)
    begin = begin // COLUMNS * COLUMNS
    length = tl.cdiv(tl.cdiv(end_position - begin, tl.num_programs(2)), COLUMNS) * COLUMNS
    begin += tl.program_id(2) * length
    return begin, tl.minimum(end_position, begin + length)

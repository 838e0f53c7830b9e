"""Our CPU attention says what attention in plain PyTorch says, for any mix of prompts and decodes, whoever computes it."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from processors import needs_cpu_kernels
from text_generation_server import cpu_kernels
from text_generation_server.attention import choose_cache_dtype, make_attention
from text_generation_server.attention.context import ForwardContext
from text_generation_server.attention.kind import Attention, AttentionKind
from text_generation_server.attention.paged_cpu import CpuAttention, can_attend
from text_generation_server.attention.sdpa import PagedAttention
from text_generation_server.device import cpu_flags
from text_generation_server.kv_cache import KVCache, KVShape
from text_generation_server.layers.alibi import alibi_slopes

pytestmark = needs_cpu_kernels

CPU = torch.device("cpu")
NUM_BLOCKS, HEAD_DIM = 64, 32
LENGTHS = [200, 97, 64, 65, 130]
# How many tokens of each sequence the steps compute: prompts in chunks, and decodes beside them.
PLANS = {
    "chunks": [[100, 90, 1, 64, 5], [99, 6, 62, 1, 70], [1, 1, 1, 0, 55]],
    "whole": [LENGTHS],
    "one by one": [[1] * 5] * 64,
}
LAYER = 1
KINDS: dict[str, Callable[[int], AttentionKind]] = {
    "plain": lambda heads: AttentionKind(scale=0.2),
    "window": lambda heads: AttentionKind(scale=0.2, window=37),
    "chunk": lambda heads: AttentionKind(scale=0.2, chunk=32),
    "softcap": lambda heads: AttentionKind(scale=0.5, softcap=2.0),
    "sinks": lambda heads: AttentionKind(scale=0.2, sinks=torch.linspace(-1, 3, heads)),
}


def make_cache(
    dtype: torch.dtype = torch.float32, block_size: int = 16, num_kv_heads: int = 2, head_dim: int = HEAD_DIM
) -> KVCache:
    """Of two layers, of which the second one is asked."""
    shapes = [KVShape(1, 16, 16), KVShape(num_kv_heads, head_dim, head_dim)]
    return KVCache(shapes, NUM_BLOCKS, block_size, dtype, CPU)


def attend_among_others(cache: KVCache, slopes: torch.Tensor | None, library: cpu_kernels.Library) -> CpuAttention:
    attention = CpuAttention(cache, slopes, library)
    for tensor in (*cache.keys, *cache.values):
        tensor.fill_(float("nan"))  # what others left behind must not be seen
    return attention


def run(attention: Attention, plan: list[list[int]], num_heads: int, kind: AttentionKind) -> list[torch.Tensor]:
    """Each sequence's outputs, of queries, keys and values that lie in one tensor as a model's product has them."""
    cache: KVCache = attention.cache  # type: ignore[attr-defined]
    _, num_kv_heads, block_size, head_dim = cache.keys[LAYER].shape
    generator = torch.Generator().manual_seed(4)
    free = torch.randperm(NUM_BLOCKS, generator=generator).tolist()
    tables = [[free.pop() for _ in range(-(-length // block_size))] for length in LENGTHS]
    rows = [torch.randn(length, num_heads + 2 * num_kv_heads, head_dim, generator=generator) for length in LENGTHS]
    width = max(map(len, tables))
    tables = [table + [0] * (width - len(table)) for table in tables]
    done, outputs = [0] * len(LENGTHS), [[] for _ in LENGTHS]  # type: ignore[var-annotated]
    for counts in plan:
        works = sorted([(index, count) for index, count in enumerate(counts) if count], key=lambda work: work[1] != 1)
        places = [(index, position) for index, count in works for position in range(done[index], done[index] + count)]
        slots = [tables[index][position // block_size] * block_size + position % block_size for index, position in places]
        context = ForwardContext(
            positions=torch.tensor([position for _, position in places]),
            slot_mapping=torch.tensor(slots),
            block_tables=torch.tensor([tables[index] for index, _ in works]),
            query_lengths=[count for _, count in works],
            context_lengths=[done[index] + count for index, count in works],
            num_decodes=sum(count == 1 for _, count in works),
            sequence_ids=[index for index, _ in works],
            prompt_lengths=[LENGTHS[index] for index, _ in works],
        )
        packed = torch.stack([rows[index][position] for index, position in places])
        query, key, value = packed.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
        output = attention.bind(context, torch.float32)(LAYER, query, key, value, kind)
        for (index, count), own in zip(works, output.split([count for _, count in works]), strict=True):
            outputs[index].append(own)
            done[index] += count
    return [torch.cat(parts) for parts in outputs]


@pytest.mark.parametrize("variant", cpu_kernels.variants(cpu_flags()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", KINDS)
def test_it_says_what_plain_attention_says(name: str, dtype: torch.dtype, variant: str) -> None:
    library = cpu_kernels.open_library(variant)
    for block_size, head_dim, (num_heads, num_kv_heads) in itertools.product((16, 32), (32, 80), ((2, 2), (8, 2), (22, 11))):
        for slopes in (None, alibi_slopes(num_heads)) if name == "plain" else (None,):
            caches = [make_cache(dtype, block_size, num_kv_heads, head_dim) for _ in range(2)]
            kind = KINDS[name](num_heads)
            ours, plain = attend_among_others(caches[0], slopes, library), PagedAttention(caches[1], slopes)
            for found, expected in zip(*(run(one, PLANS["chunks"], num_heads, kind) for one in (ours, plain)), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", cpu_kernels.variants(cpu_flags()))
@pytest.mark.parametrize("name", KINDS)
def test_a_position_is_the_same_however_it_is_computed(name: str, variant: str) -> None:
    """To the last bit: what is guessed, cached or computed in chunks gives the same text."""
    library, kind = cpu_kernels.open_library(variant), KINDS[name](6)
    slopes = alibi_slopes(6) if name == "plain" else None
    found = {plan: run(attend_among_others(make_cache(), slopes, library), steps, 6, kind) for plan, steps in PLANS.items()}
    for sequence, length in enumerate(LENGTHS):
        whole = found["whole"][sequence]
        for part in ("chunks", "one by one"):
            own = found[part][sequence]
            assert len(own) == min(length, len(own)) and torch.equal(own, whole[: len(own)])


def test_caches_that_it_does_not_know_are_left_to_plain_attention() -> None:
    assert isinstance(make_attention(make_cache()), CpuAttention)
    others = [make_cache(torch.float16), make_cache(block_size=8), make_cache(head_dim=24), make_cache(head_dim=272)]
    others.append(KVCache([KVShape(1, 32, 16)], 2, 16, torch.float32, CPU))
    for cache in others:
        assert not can_attend(cache.shapes, cache.block_size, cache.dtype, CPU)
        assert isinstance(make_attention(cache), PagedAttention)


def test_without_our_kernels_plain_attention_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "library", lambda: None)
    assert isinstance(make_attention(make_cache()), PagedAttention)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "block_size", "expected"),
    [
        (torch.bfloat16, 32, 16, torch.bfloat16),
        (torch.bfloat16, 24, 16, torch.float32),  # what plain attention would have to widen stays wide
        (torch.bfloat16, 32, 8, torch.float32),
        (torch.float16, 32, 16, torch.float32),
        (torch.float32, 32, 16, torch.float32),
    ],
)
def test_a_cache_is_kept_in_bfloat16_where_the_kernel_reads_it(
    dtype: torch.dtype, head_dim: int, block_size: int, expected: torch.dtype
) -> None:
    shapes = [KVShape(2, head_dim, head_dim)]
    assert choose_cache_dtype(shapes, block_size, dtype, torch.float32, CPU) == expected


def test_what_is_no_number_shows_to_those_who_see_it_and_to_no_other_sequence() -> None:
    attention, length = make_attention(make_cache()), 90
    packed = torch.randn(2 * length, 6, HEAD_DIM)
    packed[20, 2, 5], packed[70, 5, 3] = math.nan, math.inf  # a key of the first head, a value of the second one
    context = ForwardContext(
        positions=torch.arange(length).repeat(2),
        slot_mapping=torch.cat([torch.arange(length), 96 + torch.arange(length)]),
        block_tables=torch.arange(12).view(2, 6),
        query_lengths=[length] * 2,
        context_lengths=[length] * 2,
        num_decodes=0,
        sequence_ids=[0, 1],
        prompt_lengths=[length] * 2,
    )
    output = attention.bind(context, torch.float32)(LAYER, *packed.split([2, 2, 2], dim=1), AttentionKind(scale=0.2))
    assert output[20:length, 0].isnan().all() and not output[70:length, 1, 3].isfinite().any()
    assert output[length:].isfinite().all()

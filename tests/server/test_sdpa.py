"""Paged attention over scattered blocks is plain ALiBi attention over the whole sequence, whatever the cache held before."""

import math
import random

import pytest
import torch

from text_generation_server.attention.context import ForwardContext
from text_generation_server.attention.kind import AttentionKind
from text_generation_server.attention.sdpa import PagedAttention
from text_generation_server.kv_cache import KVCache, KVShape
from text_generation_server.layers.alibi import alibi_slopes

NUM_HEADS, HEAD_DIM, BLOCK_SIZE, NUM_BLOCKS = 3, 8, 4, 64
SCALE = HEAD_DIM**-0.5


def plain_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """All [length, num_heads, head_dim]; every position attends to itself and what is before it."""
    length = query.shape[0]
    scores = torch.einsum("qhd,khd->hqk", query, key) * SCALE
    scores = scores + alibi_slopes(NUM_HEADS)[:, None, None] * torch.arange(length)
    hidden = torch.triu(torch.ones(length, length, dtype=torch.bool), diagonal=1)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -math.inf).softmax(-1), value)


class Sequence:
    """Its queries, keys and values, the expected output, and blocks in no order."""

    def __init__(self, length: int, chance: random.Random, blocks: list[int]) -> None:
        self.data = torch.randn(3, length, NUM_HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(length))
        self.expected = plain_attention(*self.data)
        self.blocks = [blocks.pop(chance.randrange(len(blocks))) for _ in range(-(-length // BLOCK_SIZE))]
        self.start = 0


def make_context(works: list[tuple[Sequence, int]]) -> ForwardContext:
    slots = [
        sequence.blocks[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
        for sequence, length in works
        for position in range(sequence.start, sequence.start + length)
    ]
    width = max(len(sequence.blocks) for sequence, _ in works)
    positions = [position for sequence, length in works for position in range(sequence.start, sequence.start + length)]
    return ForwardContext(
        positions=torch.tensor(positions),
        slot_mapping=torch.tensor(slots),
        block_tables=torch.tensor([sequence.blocks + [0] * (width - len(sequence.blocks)) for sequence, _ in works]),
        query_lengths=[length for _, length in works],
        context_lengths=[sequence.start + length for sequence, length in works],
        num_decodes=sum(length == 1 for _, length in works),
        sequence_ids=list(range(len(works))),
        prompt_lengths=[sequence.data.shape[1] for sequence, _ in works],
    )


@pytest.mark.parametrize("seed", range(4))
def test_random_chunks_of_random_sequences_in_scattered_blocks_give_plain_attention(seed: int) -> None:
    chance = random.Random(seed)
    blocks = list(range(NUM_BLOCKS))
    sequences = [Sequence(length, chance, blocks) for length in (1, 4, 5, 19, 33)]
    cache = KVCache([KVShape(NUM_HEADS, HEAD_DIM, HEAD_DIM)], NUM_BLOCKS, BLOCK_SIZE, torch.float32, torch.device("cpu"))
    for tensor in (cache.keys[0], cache.values[0]):
        tensor.uniform_(-100, 100)  # what other sequences left behind must not be seen
    attention = PagedAttention(cache, alibi_slopes(NUM_HEADS))
    while active := [sequence for sequence in sequences if sequence.start < sequence.data.shape[1]]:
        works = [(sequence, chance.randint(1, min(9, sequence.data.shape[1] - sequence.start))) for sequence in active]
        works.sort(key=lambda work: work[1] > 1)  # decodes first
        packed = torch.cat([s.data[:, s.start : s.start + length] for s, length in works], dim=1)
        output = attention.bind(make_context(works), torch.float32)(0, *packed, AttentionKind(SCALE))
        expected = torch.cat([s.expected[s.start : s.start + length] for s, length in works])
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
        for sequence, length in works:
            sequence.start += length


@pytest.mark.parametrize("window", [None, 6, 7, 8])
def test_a_prompt_that_sees_all_of_itself_is_answered_like_the_same_one_in_chunks(window: int | None) -> None:
    """Seven tokens, whole and in two parts, with fewer key-value heads, in float16 and with numbers too large for it."""
    whole, parts = (
        KVCache([KVShape(1, HEAD_DIM, HEAD_DIM)], 4, BLOCK_SIZE, torch.float16, torch.device("cpu")) for _ in range(2)
    )
    query = torch.randn(7, NUM_HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(1)).half()
    key, value = query[:, :1].flip(0), query[:, 1:2].clone()
    value[2, 0, 3] = torch.inf
    kind = AttentionKind(scale=SCALE, window=window)

    def attend(cache: KVCache, start: int, end: int) -> torch.Tensor:
        sequence = Sequence(7, random.Random(0), [0, 1])
        sequence.start = start
        context = make_context([(sequence, end - start)])
        own = slice(start, end)
        return PagedAttention(cache).bind(context, torch.float16)(0, query[own], key[own], value[own], kind)

    expected = torch.cat([attend(parts, 0, 3), attend(parts, 3, 7)])
    found = attend(whole, 0, 7)
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.01)

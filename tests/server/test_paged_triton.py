"""TritonAttention says what PagedAttention says, whatever lies in slots that nobody uses."""

import dataclasses
import itertools

import pytest
import torch

from triton_interpreter import DEVICE  # isort: skip  before what has kernels
from text_generation_server.attention.context import ForwardContext
from text_generation_server.attention.kind import AttentionKind
from text_generation_server.attention.paged_triton import TritonAttention
from text_generation_server.attention.sdpa import PagedAttention
from text_generation_server.kv_cache import KVCache, KVShape
from text_generation_server.layers.alibi import alibi_slopes

CPU = torch.device("cpu")
FLOAT8 = torch.float8_e4m3fn
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
MIXED = [(36, 1), (300, 1), (0, 1), (20, 9), (0, 70), (130, 5)]  # of each sequence: tokens before this step, and in it
DECODES = [(36, 1), (400, 1), (0, 1)]
MANY_PROGRAMS = 10_000  # keys are split as much as their number allows
PLAIN = AttentionKind(0.125)


@dataclasses.dataclass(frozen=True)
class Case:
    works: list[tuple[int, int]]
    num_heads: int = 2
    num_kv_heads: int = 2
    key_dim: int = 64
    value_dim: int = 64
    block_size: int = 16
    dtype: torch.dtype = torch.float32
    cache_dtype: torch.dtype | None = None
    alibi: bool = False
    num_programs: int = 1
    kind: AttentionKind = PLAIN


SINKS = torch.tensor([1.0, -1.0, 3.0, 0.0])
GROUPED = {"num_heads": 4, "key_dim": 80}
CASES = {
    "decodes": Case(DECODES),
    "decodes, split": Case(DECODES, num_programs=MANY_PROGRAMS, block_size=32),
    "decodes, alibi, split, bfloat16": Case(DECODES, alibi=True, num_programs=MANY_PROGRAMS, dtype=torch.bfloat16),
    "decodes, three heads to one, window": Case(DECODES, num_heads=3, num_kv_heads=1, kind=AttentionKind(0.1, window=40)),
    "decodes, chunk, split": Case(DECODES, num_programs=MANY_PROGRAMS, kind=AttentionKind(0.1, chunk=256)),
    "decodes, sinks, split": Case(DECODES, num_heads=4, num_programs=MANY_PROGRAMS, kind=AttentionKind(0.1, sinks=SINKS)),
    "decodes, float8": Case(DECODES, dtype=torch.float16, cache_dtype=FLOAT8),
    "mixed, alibi": Case(MIXED, alibi=True),
    "mixed, alibi, bfloat16": Case(MIXED, alibi=True, dtype=torch.bfloat16, block_size=32),
    "mixed, grouped, float16": Case(MIXED, **GROUPED, dtype=torch.float16),
    "mixed, grouped, softcap and sinks": Case(MIXED, **GROUPED, kind=AttentionKind(0.5, softcap=2.0, sinks=SINKS)),
    "mixed, window, split": Case(MIXED, kind=AttentionKind(0.1, window=260), num_programs=MANY_PROGRAMS, dtype=torch.float16),
    "rows that see nothing of the first tile": Case([(5, 1), (100, 60)], kind=AttentionKind(0.1, window=20)),
    "mixed, chunk": Case(MIXED, value_dim=24, kind=AttentionKind(0.1, chunk=32)),
    "mixed, float8": Case(MIXED[2:], cache_dtype=FLOAT8, num_kv_heads=1),
}


class Batch:
    """Sequences whose blocks lie scattered; their slots before this step, and what it is given."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.generator = torch.Generator().manual_seed(7)
        counts = [-(-(past + length) // case.block_size) for past, length in case.works]
        self.num_blocks = sum(counts) + 1
        blocks = iter((torch.randperm(self.num_blocks - 1, generator=self.generator) + 1).tolist())
        self.tables = [list(itertools.islice(blocks, count)) for count in counts]
        self.past_slots = self.slots([range(past) for past, _ in case.works])
        self.new = [range(past, past + length) for past, length in case.works]
        num_tokens = sum(map(len, self.new))
        self.query = self.random(num_tokens, case.num_heads, case.key_dim)
        self.past_key, self.key = (self.random(n, case.num_kv_heads, case.key_dim) for n in (len(self.past_slots), num_tokens))
        self.past_value, self.value = (
            self.random(n, case.num_kv_heads, case.value_dim) for n in (len(self.past_slots), num_tokens)
        )

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.case.dtype)

    def slots(self, positions: list[range]) -> torch.Tensor:
        size = self.case.block_size
        pairs = zip(self.tables, positions, strict=True)
        return torch.tensor([table[p // size] * size + p % size for table, place in pairs for p in place])

    def context(self, device: torch.device) -> ForwardContext:
        width = max(map(len, self.tables))
        tables = [table + [0] * (width - len(table)) for table in self.tables]
        lengths = [len(positions) for positions in self.new]
        return ForwardContext(
            positions=torch.tensor([p for positions in self.new for p in positions], device=device),
            slot_mapping=self.slots(self.new).to(device),
            block_tables=torch.tensor(tables, device=device),
            query_lengths=lengths,
            context_lengths=[positions.stop for positions in self.new],
            num_decodes=lengths.count(1),
            sequence_ids=list(range(len(lengths))),
            prompt_lengths=lengths,
        )

    def cache(self, dtype: torch.dtype, device: torch.device, unused: float) -> KVCache:
        """With all tokens before this step, and in every other slot `unused`."""
        case = self.case
        shape = KVShape(case.num_kv_heads, case.key_dim, case.value_dim)
        cache = KVCache([shape], self.num_blocks, case.block_size, dtype, device)
        for blocks in (cache.keys[0], cache.values[0]):
            blocks.copy_(torch.full_like(blocks, unused, dtype=torch.float32))
        rows = cache.rows(self.past_slots, case.num_kv_heads).flatten()
        cache.write(0, rows.to(device), self.past_key.to(device), self.past_value.to(device))
        return cache


def attend(batch: Batch, attention: TritonAttention | PagedAttention, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    query, key, value = (tensor.to(device, dtype) for tensor in (batch.query, batch.key, batch.value))
    kind = batch.case.kind
    if kind.sinks is not None:
        kind = dataclasses.replace(kind, sinks=kind.sinks.to(device))
    return attention.bind(batch.context(device), dtype)(0, query, key, value, kind).cpu()


@pytest.mark.parametrize("name", CASES)
def test_it_attends_as_plain_pytorch_does_in_float32(name: str) -> None:
    case = CASES[name]
    batch = Batch(case)
    slopes = alibi_slopes(case.num_heads) if case.alibi else None
    exact = PagedAttention(batch.cache(case.cache_dtype or torch.float32, CPU, unused=0.0), slopes)
    attention = TritonAttention(
        batch.cache(case.cache_dtype or case.dtype, DEVICE, unused=float("nan")), None if slopes is None else slopes.to(DEVICE)
    )
    attention.num_programs = case.num_programs
    is_split = attention._num_segments(1, max(map(len, batch.tables)), case.kind) > 1
    assert is_split == (case.num_programs == MANY_PROGRAMS)
    found, expected = attend(batch, attention, case.dtype, DEVICE), attend(batch, exact, torch.float32, CPU)
    assert found.dtype == case.dtype
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=TOLERANCES[case.dtype])
    written = attention.cache.rows(batch.slots(batch.new), case.num_kv_heads)
    for mine, theirs in ((attention.cache.keys, exact.cache.keys), (attention.cache.values, exact.cache.values)):
        assert torch.equal(*(blocks[0].cpu().float().flatten(0, 2)[written] for blocks in (mine, theirs)))


def test_queries_keys_and_values_may_lie_anywhere() -> None:
    """BLOOM's are parts of one product; a model of transformers gives each head's tokens together, or numbers apart."""
    batch = Batch(Case(DECODES))
    attention = TritonAttention(batch.cache(torch.float32, DEVICE, unused=0.0))
    expected = attend(batch, attention, torch.float32, DEVICE)
    fused = torch.stack([batch.query, batch.key, batch.value], dim=2)
    batch.query, batch.key, batch.value = fused.unbind(2)
    assert torch.equal(attend(batch, attention, torch.float32, DEVICE), expected)
    batch.query, batch.key, batch.value = fused.permute(2, 1, 3, 0).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(attend(batch, attention, torch.float32, DEVICE), expected)


def test_padding_is_written_nowhere() -> None:
    batch = Batch(Case(DECODES))
    attention = TritonAttention(batch.cache(torch.float32, DEVICE, unused=5.0))
    before = attention.cache.keys[0].clone()
    context = dataclasses.replace(batch.context(DEVICE), slot_mapping=torch.full((len(DECODES),), -1, device=DEVICE))
    query, key, value = (tensor.to(DEVICE) for tensor in (batch.query, batch.key, batch.value))
    attention.bind(context, torch.float32)(0, query, key, value, batch.case.kind)
    assert torch.equal(attention.cache.keys[0], before)


def test_keys_are_split_by_shapes_alone_and_only_for_an_idle_device() -> None:
    attention = TritonAttention(Batch(Case(DECODES)).cache(torch.float32, DEVICE, unused=0.0))
    attention.num_programs = 528
    plain, narrow = AttentionKind(1.0), AttentionKind(1.0, window=256)
    assert attention._num_segments(num_programs=14, max_blocks=128, kind=plain) == 16  # of 128 keys each
    assert attention._num_segments(num_programs=14, max_blocks=100_000, kind=plain) == 32
    assert attention._num_segments(num_programs=14, max_blocks=128, kind=narrow) == 2
    assert attention._num_segments(num_programs=300, max_blocks=128, kind=plain) == 1
    assert attention._num_segments(num_programs=1000, max_blocks=128, kind=plain) == 1


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a GPU")
def test_a_recorded_step_of_decodes_can_be_played_for_longer_sequences() -> None:
    batch = Batch(Case(DECODES, dtype=torch.bfloat16))
    attention = TritonAttention(batch.cache(torch.bfloat16, DEVICE, unused=0.0))
    query, key, value = (tensor.to(DEVICE) for tensor in (batch.query, batch.key, batch.value))
    context = batch.context(DEVICE)
    later = dataclasses.replace(context, positions=context.positions + 3, slot_mapping=context.slot_mapping + 3)
    expected = attention.bind(later, torch.bfloat16)(0, query, key, value, batch.case.kind)
    attention.bind(context, torch.bfloat16)(0, query, key, value, batch.case.kind)  # compiled, before it is recorded
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = attention.bind(context, torch.bfloat16)(0, query, key, value, batch.case.kind)
    context.positions.copy_(later.positions)
    context.slot_mapping.copy_(later.slot_mapping)
    graph.replay()
    assert torch.equal(output, expected)

"""The device's block tables are those of the sequences, whoever came, grew and went before."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from text_generation_proto.shard_pb2 import Step
from text_generation_server.batch import Batch
from text_generation_server.block_tables import MIN_BLOCKS, MIN_ROWS, BlockTables
from text_generation_server.errors import StepError
from text_generation_server.sequences import Sequences

BLOCK_SIZE = 4
CPU = torch.device("cpu")


class Shard:
    """Sequences of known tokens, and what is kept of them on the device."""

    def __init__(self) -> None:
        self.sequences = Sequences(BLOCK_SIZE, num_blocks=10_000, max_batch_tokens=100_000, vocab_size=10)
        self.block_tables = BlockTables(BLOCK_SIZE, CPU)
        self.expected: dict[int, list[int]] = {}
        self._num_blocks = 0

    def step(self, grow: dict[int, int], drop: tuple[int, ...] = ()) -> Batch:
        """Sequence ids → how many new blocks each gets. Whoever is not known is added."""
        step = Step(drop=drop)
        for number in drop:
            del self.expected[number]
        for number, num_blocks in grow.items():
            if number not in self.expected:
                step.add.add(id=number, token_ids=[1])
            blocks = range(self._num_blocks, self._num_blocks + num_blocks)
            self._num_blocks = blocks.stop
            self.expected[number] = self.expected.get(number, []) + list(blocks)
            step.work.add(sequence_id=number, start=0, length=1, block_ids=blocks)
        return Batch.of(self.sequences.apply(step), self.block_tables)

    def check(self, batch: Batch) -> None:
        found = batch.context.block_tables.tolist()
        wanted = [self.expected[number] for number in batch.context.sequence_ids]
        width = max(map(len, wanted))
        assert found == [blocks + [0] * (width - len(blocks)) for blocks in wanted]
        assert batch.context.slot_mapping.tolist() == [blocks[0] * BLOCK_SIZE for blocks in wanted]


def test_blocks_arrive_once_and_stay() -> None:
    shard = Shard()
    shard.check(shard.step({1: 2, 2: 1}))
    shard.check(shard.step({2: 3, 1: 0}))
    shard.check(shard.step({1: 0}))


def test_there_is_room_for_more_and_longer_sequences() -> None:
    shard = Shard()
    shard.check(shard.step({number: 1 for number in range(MIN_ROWS)}))
    shard.check(shard.step({0: MIN_BLOCKS, MIN_ROWS: 3 * MIN_BLOCKS}))
    shard.check(shard.step({number: 0 for number in range(MIN_ROWS + 1)}))


def test_a_row_goes_to_whoever_comes_next() -> None:
    shard = Shard()
    shard.step({1: 5, 2: 1})
    batch = shard.step({3: 1, 2: 0}, drop=(1,))
    shard.check(batch)
    assert sorted(chunk.sequence.row for chunk in batch.chunks) == [0, 1]


def test_a_sequence_that_is_refused_takes_no_row() -> None:
    shard = Shard()
    shard.step({1: 1, 2: 1})
    shard.step({2: 0}, drop=(1,))
    step = Step()
    step.add.add(id=9, token_ids=[99])
    with pytest.raises(StepError):
        shard.sequences.apply(step)
    batch = shard.step({3: 1, 4: 1, 2: 0})
    shard.check(batch)
    assert sorted(chunk.sequence.row for chunk in batch.chunks) == [0, 1, 2]


def test_nothing_of_them_is_left_after_clear() -> None:
    shard = Shard()
    shard.step({1: 3, 2: 2})
    shard.sequences.clear()
    shard.expected.clear()
    shard.check(shard.step({2: 1, 1: 2}))


moves = st.dictionaries(st.integers(0, 40), st.integers(1, 20), min_size=1)


@given(st.lists(st.tuples(moves, st.sets(st.integers(0, 40))), max_size=12))
def test_any_coming_and_going(steps: list[tuple[dict[int, int], set[int]]]) -> None:
    shard = Shard()
    for grow, leaving in steps:
        shard.check(shard.step(grow, drop=tuple(leaving & set(shard.expected))))

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from text_generation_router.block_manager import BlockManager
from text_generation_router.sequence import Request, Sequence

BLOCK_SIZE = 4


def sequence(token_ids: list[int], sequence_id: int = 0) -> Sequence:
    return Sequence(sequence_id, Request(token_ids, 100))


def computed(manager: BlockManager, token_ids: list[int]) -> Sequence:
    """A sequence that has its blocks, and all of whose tokens are computed."""
    running = sequence(token_ids)
    manager.take_prefix(running)
    manager.grow(running, len(token_ids))
    manager.register(running, len(token_ids))
    return running


def num_cached(manager: BlockManager, token_ids: list[int]) -> int:
    probe = sequence(token_ids)
    manager.take_prefix(probe)
    num_cached = probe.num_scheduled
    manager.release(probe)
    return num_cached


def test_a_sequence_gets_as_many_blocks_as_its_positions_need_and_gives_them_back():
    manager = BlockManager(10, BLOCK_SIZE)
    running = sequence([1] * 9)
    assert [manager.num_missing(running, positions) for positions in (0, 1, 4, 5, 9)] == [0, 1, 1, 2, 3]
    assert manager.grow(running, 9) == running.block_ids and len(running.block_ids) == 3
    assert manager.grow(running, 12) == []
    assert len(manager.grow(running, 13)) == 1
    manager.check_integrity([running])
    manager.release(running)
    assert manager.num_free == 10 and running.block_ids == []
    manager.check_integrity([])


def test_a_prefix_is_found_in_full_blocks_only():
    manager = BlockManager(10, BLOCK_SIZE)
    manager.release(computed(manager, list(range(10))))
    assert num_cached(manager, [*range(10), 99]) == 8
    assert num_cached(manager, [*range(7), 99, 99]) == 4
    assert num_cached(manager, [0, 1, 2, 99, 4, 5, 6, 7, 8]) == 0


def test_one_token_at_least_is_left_to_compute():
    manager = BlockManager(10, BLOCK_SIZE)
    manager.release(computed(manager, list(range(8))))
    assert num_cached(manager, list(range(8))) == 4
    assert num_cached(manager, list(range(9))) == 8
    assert num_cached(manager, list(range(4))) == 0


def test_a_block_is_found_behind_its_own_prefix_only():
    manager = BlockManager(10, BLOCK_SIZE)
    manager.release(computed(manager, [1, 1, 1, 1, 2, 2, 2, 2]))
    assert num_cached(manager, [2, 2, 2, 2, 1, 1, 1, 1, 0]) == 0
    assert num_cached(manager, [2, 2, 2, 2, 2, 2, 2, 2, 0]) == 0


def test_token_ids_of_several_bytes_cannot_be_confused():
    manager = BlockManager(10, BLOCK_SIZE)
    manager.release(computed(manager, [1, 0, 0, 0, 5]))
    for other in ([256, 0, 0, 0, 5], [65536, 0, 0, 0, 5], [0, 1, 0, 0, 5], [1, 0, 0, 0, 0]):
        assert num_cached(manager, other) == (4 if other[:4] == [1, 0, 0, 0] else 0)


def test_what_is_not_computed_yet_is_not_found():
    manager = BlockManager(10, BLOCK_SIZE)
    running = sequence(list(range(12)))
    manager.grow(running, 12)
    assert num_cached(manager, list(range(12))) == 0
    manager.register(running, 7)
    assert num_cached(manager, list(range(12))) == 4
    manager.register(running, 12)
    assert num_cached(manager, list(range(13))) == 12


def test_a_position_whose_token_is_not_known_yet_is_not_registered():
    manager = BlockManager(10, BLOCK_SIZE)
    running = sequence([1, 2, 3])
    manager.grow(running, 4)
    manager.register(running, 4)
    assert running.num_registered_blocks == 0
    running.token_ids.append(4)
    manager.register(running, 4)
    assert num_cached(manager, [1, 2, 3, 4, 5]) == 4


def test_who_waits_for_room_is_hashed_once(monkeypatch):
    """It is asked for its prefix anew with every step, and a long one's hashes take longer than the step is made."""
    manager = BlockManager(10, BLOCK_SIZE)
    manager.release(computed(manager, list(range(8))))
    waiting, hashed, sha256 = sequence(list(range(13))), [], hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda data: hashed.append(1) or sha256(data))
    for _ in range(3):
        manager.take_prefix(waiting)
        assert waiting.num_scheduled == 8
        manager.release(waiting)
    assert len(hashed) == 3  # of the whole blocks that there are before the last token
    manager.take_prefix(waiting)
    manager.grow(waiting, 13)
    manager.register(waiting, 13)
    assert len(hashed) == 3 and num_cached(manager, list(range(13))) == 12


def test_a_running_sequence_shares_its_prefix():
    manager = BlockManager(10, BLOCK_SIZE)
    first = computed(manager, list(range(9)))
    second = sequence([*range(8), 99], 1)
    manager.take_prefix(second)
    assert second.block_ids == first.block_ids[:2]
    manager.grow(second, 9)
    assert second.block_ids[2] not in first.block_ids
    manager.release(first)
    manager.check_integrity([second])
    assert manager.num_free == 7
    manager.release(second)
    assert manager.num_free == 10


def test_equal_prompts_that_were_computed_side_by_side_leave_one_entry_and_no_leak():
    manager = BlockManager(10, BLOCK_SIZE)
    twins = [sequence(list(range(8)), number) for number in range(2)]
    for twin in twins:
        manager.take_prefix(twin)
        manager.grow(twin, 8)
    for twin in twins:
        manager.register(twin, 8)
    manager.check_integrity(twins)
    for twin in twins:
        manager.release(twin)
    manager.check_integrity([])
    assert num_cached(manager, list(range(9))) == 8


def test_free_blocks_without_content_are_taken_before_those_that_hold_a_prefix():
    manager = BlockManager(4, BLOCK_SIZE)
    manager.release(computed(manager, list(range(8))))
    manager.grow(sequence([50] * 8), 8)
    assert num_cached(manager, list(range(9))) == 8


def test_the_least_recently_used_prefix_goes_first():
    manager = BlockManager(4, BLOCK_SIZE)
    for first_token in (10, 20, 30):
        manager.release(computed(manager, [first_token] * 4))
    assert num_cached(manager, [10] * 5) == 4  # used again
    manager.grow(sequence([50] * 8), 8)  # the empty block and one more
    assert [num_cached(manager, [token] * 5) for token in (10, 20, 30)] == [4, 0, 4]


def test_the_end_of_a_prefix_goes_before_its_beginning():
    manager = BlockManager(3, BLOCK_SIZE)
    manager.release(computed(manager, list(range(12))))
    manager.grow(sequence([50]), 1)
    assert num_cached(manager, list(range(13))) == 8


def test_a_block_that_is_taken_for_something_else_is_found_no_more():
    manager = BlockManager(2, BLOCK_SIZE)
    manager.release(computed(manager, list(range(8))))
    thief = sequence([50] * 8)
    manager.grow(thief, 8)
    assert num_cached(manager, list(range(9))) == 0
    manager.check_integrity([thief])


def test_without_prefix_caching_nothing_is_found():
    manager = BlockManager(10, BLOCK_SIZE, prefix_caching=False)
    manager.release(computed(manager, list(range(8))))
    assert num_cached(manager, list(range(9))) == 0


@pytest.mark.parametrize("spoil", [lambda s: s.block_ids.pop(), lambda s: s.block_ids.append(9)])
def test_the_integrity_check_sees_a_lost_and_a_stolen_block(spoil):
    manager = BlockManager(10, BLOCK_SIZE)
    running = computed(manager, list(range(8)))
    manager.check_integrity([running])
    spoil(running)
    with pytest.raises(AssertionError, match="a bug"):
        manager.check_integrity([running])


_PROMPTS = st.lists(st.sampled_from([7, 8]), min_size=1, max_size=14)


@given(st.lists(st.tuples(_PROMPTS, st.booleans()), max_size=12), st.integers(4, 12))
def test_a_found_prefix_was_computed_from_the_same_tokens(arrivals, num_blocks):
    """Whoever looks up a prefix gets blocks whose last writer wrote exactly those tokens there."""
    manager = BlockManager(num_blocks, BLOCK_SIZE)
    written: dict[int, list[int]] = {}  # by block: all tokens up to its end
    held: list[Sequence] = []
    for number, (token_ids, leaves) in enumerate(arrivals):
        arrived = sequence(token_ids, number)
        manager.take_prefix(arrived)
        assert arrived.num_scheduled < len(token_ids)
        for index, block in enumerate(arrived.block_ids):
            assert written[block] == token_ids[: (index + 1) * BLOCK_SIZE]
        if manager.num_missing(arrived, len(token_ids)) > manager.num_free:
            manager.release(arrived)
            continue
        first_new = len(arrived.block_ids)
        for index, block in enumerate(manager.grow(arrived, len(token_ids)), first_new):
            assert not any(block in other.block_ids for other in held)
            written[block] = token_ids[: (index + 1) * BLOCK_SIZE]
        manager.register(arrived, len(token_ids))
        held.append(arrived)
        if leaves:
            manager.release(held.pop(0))
        manager.check_integrity(held)

"""Memory between ranks: whatever their pace, each sees what all gave at the same call. Ranks are threads here."""

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from text_generation_server.errors import ShardLost
from text_generation_server.shared_memory import SLOT_BYTES, SharedMemory

WORLD_SIZE = 3


@pytest.fixture
def memories() -> Iterator[list[SharedMemory]]:
    path = SharedMemory.create(WORLD_SIZE)
    yield [SharedMemory(path, rank, WORLD_SIZE, timeout_seconds=10.0) for rank in range(WORLD_SIZE)]
    Path(path).unlink()


def on_all(memories: list[SharedMemory], work: Callable[[SharedMemory], Any]) -> list[Any]:
    with ThreadPoolExecutor(WORLD_SIZE) as pool:
        return list(pool.map(work, memories))


def test_each_rank_sees_what_all_gave_whatever_their_pace(memories: list[SharedMemory]) -> None:
    def work(memory: SharedMemory) -> list[bool]:
        sizes, pace = random.Random(0), random.Random(memory.rank)
        seen = []
        for call in range(300):
            size = sizes.choice([1, 3, 1000, SLOT_BYTES // 4])
            gathered = memory.all_gather(torch.full((size,), 10.0 * call + memory.rank))
            if pace.random() < 0.1:
                time.sleep(0.001)
            seen.append(torch.equal(gathered, (10.0 * call + torch.arange(3.0)).unsqueeze(1).expand(3, size)))
        return seen

    assert all(map(all, on_all(memories, work)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64, torch.float64])
def test_types_are_kept(memories: list[SharedMemory], dtype: torch.dtype) -> None:
    gathered = on_all(memories, lambda memory: memory.all_gather(torch.tensor([memory.rank, 7], dtype=dtype)))
    assert all(torch.equal(found, torch.tensor([[0, 7], [1, 7], [2, 7]], dtype=dtype)) for found in gathered)


def test_calls_are_counted_for_as_long_as_a_server_runs(memories: list[SharedMemory]) -> None:
    """At a thousand steps a second, of 200 calls each, this is half a year."""
    for memory in memories:
        memory._num_calls = 200 * 1000 * 86400 * 183
    gathered = on_all(memories, lambda memory: memory.all_gather(torch.full((SLOT_BYTES // 4,), float(memory.rank))))
    assert all(found[:, 0].tolist() == [0, 1, 2] for found in gathered)


def test_ranks_that_are_out_of_step_say_so(memories: list[SharedMemory]) -> None:
    def work(memory: SharedMemory) -> str:
        try:
            memory.all_gather(torch.zeros(5 if memory.rank == 1 else 4))
        except ShardLost as error:
            return str(error)
        return ""

    assert "rank 1 is out of step" in on_all(memories, work)


def test_a_folder_without_room_is_an_oserror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("text_generation_server.shared_memory.MEMORY_FOLDER", tmp_path / "none")
    with pytest.raises(OSError, match="none"):
        SharedMemory.create(WORLD_SIZE)

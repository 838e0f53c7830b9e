"""One rank is a no-op; two ranks sum, gather and agree, and one whose partner dies says so."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shard_processes import free_port
from text_generation_server import parallel, shared_memory
from text_generation_server.errors import ConfigurationError
from text_generation_server.parallel import Parallel
from text_generation_server.symmetric_memory import MAX_BYTES, SymmetricMemory
from two_ranks import TIMEOUT_SECONDS


def test_with_one_rank_nothing_happens() -> None:
    parallel = Parallel.connect(0, 1, torch.device("cpu"), "localhost", 1, 1.0)
    tensor = torch.arange(3.0)
    assert parallel.all_reduce(tensor) is tensor
    assert parallel.broadcast(tensor) is tensor
    assert torch.equal(parallel.all_gather(tensor), torch.arange(3.0).unsqueeze(0))
    assert parallel.minimum(5) == 5
    assert parallel.is_first


def test_two_ranks_sum_gather_and_agree(ranks: list[dict[str, Any]]) -> None:
    for results in ranks:
        assert results["all_reduce"].tolist() == [10, 12, 14, 16]
        assert results["all_gather"].tolist() == [[0, 1, 2, 3], [10, 11, 12, 13]]
        large = torch.arange(700_000.0).view(7, -1)
        assert torch.equal(results["all_reduce_large"], large * 3)
        assert torch.equal(results["all_gather_large"], torch.stack([large, large * 2]))
        assert results["broadcast"].tolist() == [0, 1, 2, 3]
        assert results["minimum"] == 6


def on_two_ranks(work: Callable[..., None], folder: Path, *arguments: object) -> list[Any]:
    """What each of two processes has saved."""
    context, port = multiprocessing.get_context("spawn"), free_port()
    processes = [context.Process(target=work, args=(rank, port, folder, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_ranks_that_can_share_no_memory_do_the_same_through_sockets(tmp_path: Path) -> None:
    for summed, gathered, first in on_two_ranks(_rank_without_memory, tmp_path):
        assert (summed.tolist(), gathered.tolist(), first.tolist()) == ([10, 12], [[0, 1], [10, 11]], [0, 1])


def _rank_without_memory(rank: int, port: int, folder: Path) -> None:
    if rank == 0:
        shared_memory.MEMORY_FOLDER = folder / "none"
    parallel = Parallel.connect(rank, 2, torch.device("cpu"), "127.0.0.1", port, TIMEOUT_SECONDS)
    mine = torch.arange(2.0) + 10 * rank
    found = parallel.all_reduce(mine.clone()), parallel.all_gather(mine), parallel.broadcast(mine.clone())
    torch.save(found, folder / f"{rank}.pt")
    parallel.minimum(0)  # both have saved


class Summed:
    """Takes the place of SymmetricMemory where no GPUs are: sums, right or wrong, or is not to be had."""

    def __init__(self, rank: int, case: str) -> None:
        self.is_wrong = case == "wrong on rank 1" and rank == 1
        self.is_broken = case == "no kernel"
        self.num_sums = 0
        if case == "not on rank 1" and rank == 1:
            raise RuntimeError("no NVLink. Call stack: …")

    def takes(self, tensor: torch.Tensor) -> bool:
        return len(tensor) != 10

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        self.num_sums += 1
        if self.is_broken:
            raise RuntimeError("no kernel image is available. Call stack: …")
        total = tensor.clone()
        torch.distributed.all_reduce(total)
        return total + self.is_wrong


@pytest.mark.parametrize("case", ["right", "wrong on rank 1", "no kernel", "not on rank 1", "as it is"])
def test_memory_that_gpus_share_makes_small_sums_where_all_ranks_can_and_the_sums_are_right(tmp_path: Path, case: str) -> None:
    for num_sums, small, large in on_two_ranks(_rank_with_symmetric, tmp_path, case):
        assert num_sums == (3 if case == "right" else None)  # two of them at the start, to see whether they are right
        assert small.tolist() == [1, 3] and large.tolist() == [1] * 10


def _rank_with_symmetric(rank: int, port: int, folder: Path, case: str) -> None:
    parallel.Parallel.connect(rank, 2, torch.device("cpu"), "127.0.0.1", port, TIMEOUT_SECONDS)
    if case != "as it is":  # that is PyTorch's own, which has none for a CPU
        parallel.SymmetricMemory = lambda group, device: Summed(rank, case)  # type: ignore[misc, assignment]
    memory = parallel._try_symmetric(torch.device("cpu"))
    both = Parallel(rank, 2, symmetric=memory)
    small, large = both.all_reduce(torch.arange(2.0) + rank * torch.ones(2)), both.all_reduce(torch.full((10,), float(rank)))
    torch.save((memory and memory.num_sums, small, large), folder / f"{rank}.pt")
    torch.distributed.barrier()


@pytest.mark.parametrize(
    ("size", "dtype", "taken"),
    [
        (14336, torch.bfloat16, True),
        (MAX_BYTES // 2, torch.bfloat16, True),
        (MAX_BYTES // 2 + 8, torch.bfloat16, False),
        (12, torch.bfloat16, False),  # not a multiple of 16 bytes
        (1024, torch.float32, True),
        (1024, torch.float16, False),
        (1024, torch.int64, False),
        (0, torch.float32, False),
    ],
)
def test_what_is_large_or_no_matter_of_the_kernel_goes_another_way(size: int, dtype: torch.dtype, taken: bool) -> None:
    assert SymmetricMemory.takes(SymmetricMemory.__new__(SymmetricMemory), torch.zeros(size, dtype=dtype)) == taken


def test_a_rank_whose_partner_dies_says_so_in_one_line_and_in_time(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["loss"] == "lost the other ranks: rank 1 is gone"
    assert ranks[0]["loss_seconds"] < TIMEOUT_SECONDS


def test_a_rank_that_nobody_meets_gives_up_in_time() -> None:
    with pytest.raises(ConfigurationError, match=r"cannot meet the other ranks at 127\.0\.0\.1:1 \(--master-addr"):
        Parallel.connect(1, 2, torch.device("cpu"), "127.0.0.1", 1, timeout_seconds=0.5)


@pytest.mark.parametrize(("heads", "world_size"), [(8, 3), (112, 5), (7, 2)])
def test_heads_that_do_not_divide_are_refused(heads: int, world_size: int) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Parallel(0, world_size).split(heads, "attention heads")
    assert str(caught.value) == f"{heads} attention heads cannot be split over {world_size} shards"


@pytest.mark.parametrize(("size", "world_size"), [(8, 4), (112, 8), (301, 2), (250880, 8), (10, 4), (7, 1)])
def test_shares_cover_everything_once(size: int, world_size: int) -> None:
    parallels = [Parallel(rank, world_size) for rank in range(world_size)]
    padded = [part for parallel in parallels for part in range(size)[parallel.split_padded(size)]]
    assert padded == list(range(size))
    if size % world_size == 0:
        assert [parallel.split(size, "things") for parallel in parallels] == [p.split_padded(size) for p in parallels]

"""Parallel: this rank among the others, and the collectives between them. With one rank everything is a no-op.

In: rank, world_size and the meeting place. Out: sums and gathers over all ranks: NCCL on CUDA, and on request memory that GPUs
read from each other; on CPU memory that the ranks share, or Gloo where there is none. The only file that calls
torch.distributed, but for the part of it that is symmetric memory's. Knows nothing of models.
"""

import contextlib
import datetime
import logging
import os
from collections.abc import Callable

import torch
import torch.distributed as dist

from text_generation_server.errors import ConfigurationError, ShardLost
from text_generation_server.shared_memory import SLOT_BYTES, SharedMemory
from text_generation_server.symmetric_memory import DTYPES, SymmetricMemory

logger = logging.getLogger(__name__)

MEETING_SIZE = 3
TRIAL_SIZE = 4096
SYMMETRIC_ERRORS = (RuntimeError, AttributeError, ImportError)  # of GPUs, and of builds of PyTorch


class Parallel:
    """Every method must be called by all ranks in the same order; a failure is a `ShardLost`."""

    def __init__(
        self,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
        memory: SharedMemory | None = None,
        symmetric: SymmetricMemory | None = None,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.device = device or torch.device("cpu")
        self._memory = memory
        self._symmetric = symmetric

    @classmethod
    def connect(
        cls,
        rank: int,
        world_size: int,
        device: torch.device,
        address: str,
        port: int,
        timeout_seconds: float,
        one_shot: bool = False,
    ) -> "Parallel":
        """Meets the other ranks at `address:port`; returns when all are there. `one_shot`: on CUDA, small sums are to be made
        through symmetric memory."""
        if world_size > 1:
            backend = "nccl" if device.type == "cuda" else "gloo"
            timeout = datetime.timedelta(seconds=timeout_seconds)
            init_method = f"tcp://{address}:{port}"
            try:
                dist.init_process_group(backend, init_method, timeout, rank=rank, world_size=world_size)
            except dist.DistNetworkError as error:
                reason = f"cannot meet the other ranks at {address}:{port} (--master-addr, --master-port): {_first_line(error)}"
                raise ConfigurationError(reason) from error
            except RuntimeError as error:
                raise ShardLost(f"the other ranks did not come: {_first_line(error)}") from error
        if world_size > 1 and device.type == "cpu":
            return cls(rank, world_size, device, memory=_share_memory(rank, world_size, timeout_seconds))
        return cls(rank, world_size, device, symmetric=_try_symmetric(device) if world_size > 1 and one_shot else None)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of `tensor`, which is contiguous, over the ranks: in its place, or beside it."""
        if self._memory is not None:
            for piece in tensor.view(-1).split(SLOT_BYTES // tensor.element_size()):
                first, *others = self._memory.all_gather(piece)
                piece.copy_(first)
                for part in others:  # in the same order on every rank: they all have the same sum
                    piece += part
        elif self._symmetric is not None and self._symmetric.takes(tensor):
            return self._symmetric.all_reduce(tensor)
        elif self.world_size > 1:
            _guarded(lambda: dist.all_reduce(tensor))
        return tensor

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """[...] on each rank → [world_size, ...] on all of them."""
        if self.world_size == 1:
            return tensor.unsqueeze(0)
        tensor = tensor.contiguous()
        if self._memory is not None:
            pieces = tensor.view(-1).split(SLOT_BYTES // tensor.element_size())
            gathered = torch.cat([self._memory.all_gather(piece).clone() for piece in pieces], dim=1)
            return gathered.view(self.world_size, *tensor.shape)
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        _guarded(lambda: dist.all_gather(parts, tensor))
        return torch.stack(parts)

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rank 0's `tensor` to all, in place."""
        if self._memory is not None:
            tensor.copy_(self.all_gather(tensor)[0])
        elif self.world_size > 1:
            _guarded(lambda: dist.broadcast(tensor, src=0))
        return tensor

    def meet(self) -> None:
        """Makes sure that no rank is still in the middle of a step that another never got: a driver may die between two
        of its writes. What such a rank waits for has another size than this."""
        if self.world_size > 1:
            met = self.all_gather(torch.full((MEETING_SIZE,), MEETING_SIZE, device=self.device))
            if not bool((met == MEETING_SIZE).all()):
                raise ShardLost("the ranks are out of step")

    def minimum(self, value: int) -> int:
        """The smallest `value` of all ranks. On the CPU, for counts known at start."""
        if self.world_size == 1:
            return value
        return int(self.all_gather(torch.tensor(value, device=self.device)).min())

    def split(self, size: int, what: str) -> slice:
        """This rank's equal share of `size` things.

        Raises:
            ConfigurationError: they do not divide evenly.
        """
        if size % self.world_size:
            raise ConfigurationError(f"{size} {what} cannot be split over {self.world_size} shards")
        share = size // self.world_size
        return slice(self.rank * share, (self.rank + 1) * share)

    def split_shared(self, size: int, what: str) -> slice:
        """The same; where there are fewer things than ranks, neighbouring ranks have the same one.

        Raises:
            ConfigurationError: things do not divide evenly over ranks, nor ranks over things.
        """
        if size >= self.world_size or self.world_size % size:
            return self.split(size, what)
        first = self.rank * size // self.world_size
        return slice(first, first + 1)

    def split_padded(self, size: int) -> slice:
        """This rank's share where the last ranks may have fewer: for vocabularies, which need not divide."""
        share = self.padded_share(size)
        return slice(min(self.rank * share, size), min((self.rank + 1) * share, size))

    def padded_share(self, size: int) -> int:
        return -(-size // self.world_size)


def _share_memory(rank: int, world_size: int, timeout_seconds: float) -> SharedMemory | None:
    """None on every rank where one of them cannot."""
    path, memory = [""], None
    if rank == 0:
        with contextlib.suppress(OSError):
            path = [SharedMemory.create(world_size)]
    _guarded(lambda: dist.broadcast_object_list(path))
    with contextlib.suppress(OSError):
        memory = SharedMemory(path[0], rank, world_size, timeout_seconds)
    can_share = _all_say(memory is not None, torch.device("cpu"))
    if rank == 0 and path[0]:
        os.unlink(path[0])
    if not can_share:
        logger.warning("the ranks share no memory: they talk through sockets, which takes longer")
    return memory if can_share else None


def _try_symmetric(device: torch.device) -> SymmetricMemory | None:
    """None on every rank where one of them cannot, or where sums are not those of the other way."""
    memory, reason, group = None, "", dist.group.WORLD
    assert group is not None, "tried before the ranks have met: this is a bug"
    try:
        memory = SymmetricMemory(group, device)
    except SYMMETRIC_ERRORS as error:
        reason = f": {_first_line(error)}"
    all_can = _all_say(memory is not None, device)
    if memory is None or not all_can:
        logger.warning("the ranks' GPUs share no memory, NCCL makes all sums%s", reason)
        return None
    if not _all_say(_sums_right(memory, device), device):
        logger.warning("sums through the GPUs' shared memory are wrong, NCCL makes them all")
        return None
    return memory


def _sums_right(memory: SymmetricMemory, device: torch.device) -> bool:
    """Tried on numbers that differ from rank to rank, and are summed without rounding."""
    part = torch.arange(TRIAL_SIZE, device=device, dtype=torch.float32) % 16 + dist.get_rank()
    expected = part.clone()
    _guarded(lambda: dist.all_reduce(expected))
    try:
        sums = [memory.all_reduce(part.to(dtype)) for dtype in DTYPES]  # all of them on every rank, whatever the first one is
        return all(torch.equal(found.float(), expected) for found in sums)
    except SYMMETRIC_ERRORS as error:
        logger.warning("the GPUs' shared memory cannot be summed: %s", _first_line(error))
        return False


def _all_say(yes: bool, device: torch.device) -> bool:
    said = torch.tensor(int(yes), device=device)
    _guarded(lambda: dist.all_reduce(said, dist.ReduceOp.MIN))
    return bool(said)


def _guarded(collective: Callable[[], object]) -> None:
    try:
        collective()
    except RuntimeError as error:
        raise ShardLost(f"lost the other ranks: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """Gloo's and NCCL's messages go on for a page."""
    return str(error).splitlines()[0].split(". ")[0]

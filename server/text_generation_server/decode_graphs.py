"""DecodeGraphs: steps that only decode, recorded once for some batch sizes and played with one launch each.

In: a model, its attention, how greedy tokens are chosen. Out: the logits and greedy tokens of a batch, or the greedy tokens of
several steps in a row. A model's decode step is hundreds of kernels, and the shortest ones take less time than the processor
needs to order them. What is recorded reads and writes the same memory each time: a batch is copied there, and rows that it does
not fill have no slot, so that nothing is kept of them.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch

from text_generation_server.attention.context import ForwardContext
from text_generation_server.attention.kind import Attention
from text_generation_server.batch import Batch
from text_generation_server.models.contract import Model
from text_generation_server.sampler import Greedy, Sampler

logger = logging.getLogger(__name__)

NO_SLOT = -1


class Recorder(Protocol):
    def record(self, function: Callable[[], None]) -> Callable[[], object]:
        """Runs `function`, and returns what does the same again.

        Raises:
            RuntimeError: it waits for the device, or there is no memory for it.
        """


class CudaRecorder:
    """CUDA graphs that share one pool of memory: they never run at the same time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def record(self, function: Callable[[], None]) -> Callable[[], object]:
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):  # a record that fails would not give back the stream that was current
            function()  # kernels are compiled and libraries set up outside of the record
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                function()
        torch.cuda.current_stream().wait_stream(self._stream)
        return graph.replay


class Decoded(NamedTuple):
    logits: torch.Tensor  # [num_sequences, vocab_size_local], float32
    greedy: Greedy


class DecodeGraphs:
    def __init__(
        self,
        model: Model,
        attention: Attention,
        sampler: Sampler,
        sizes: Sequence[int],
        max_blocks: int,
        block_size: int,
        device: torch.device,
        recorder: Recorder,
    ) -> None:
        """`max_blocks`: of one sequence. From the first size on that cannot be recorded, which is warned of, there are no more:
        nobody knows what state its record was left in."""
        self.model = model
        self.attention = attention
        self.sampler = sampler
        self.block_size = block_size
        largest = max(sizes)
        self._token_ids, self._positions, self._slots = torch.zeros(3, largest, dtype=torch.long, device=device)
        self._block_tables = torch.zeros(largest, max_blocks, dtype=torch.long, device=device)
        self._logits = torch.empty(largest, sampler.vocab_size_local, device=device)
        self._greedy = Greedy.empty(largest, device)
        self._replays: dict[int, Callable[[], object]] = {}
        for size in sorted(sizes, reverse=True):  # the memory of the largest one is enough for the others
            if not self._record(size, recorder):
                break

    @property
    def sizes(self) -> list[int]:
        return sorted(self._replays)

    def decode(self, batch: Batch) -> Decoded | None:
        """It is the record's own memory, which the next step overwrites. None: there is more to do than to decode, or the
        batch or one of its sequences is larger than what was recorded."""
        size = self._take(batch)
        if size is None:
            return None
        self._replays[size]()
        num_sequences = len(batch.chunks)
        return Decoded(self._logits[:num_sequences], self._greedy.first(num_sequences))

    def decode_several(self, batch: Batch, num_steps: int) -> list[Greedy] | None:
        """What is greedy in each of so many steps, of which each begins with the tokens of the one before. The device need not
        wait for anyone between them. The last one's is the record's own memory. None as above."""
        size = self._take(batch)
        if size is None:
            return None
        num_sequences, found = len(batch.chunks), []
        for _ in range(num_steps - 1):
            self._replays[size]()
            found.append(self._greedy.first(num_sequences).clone())
            self._advance(size)
        self._replays[size]()
        return [*found, self._greedy.first(num_sequences)]

    def _take(self, batch: Batch) -> int | None:
        """Copies the batch to where the record of the returned size reads."""
        num_sequences, width = batch.context.block_tables.shape
        size = next((size for size in self.sizes if size >= num_sequences), None)
        if size is None or not batch.only_decodes or width > self._block_tables.shape[1]:
            return None
        self._slots[:size].fill_(NO_SLOT)
        self._positions[:size].zero_()
        self._token_ids[:num_sequences].copy_(batch.token_ids)
        self._positions[:num_sequences].copy_(batch.context.positions)
        self._slots[:num_sequences].copy_(batch.context.slot_mapping)
        self._block_tables[:num_sequences, :width].copy_(batch.context.block_tables)
        return size

    def _advance(self, size: int) -> None:
        """To the next position of each sequence, whose token is the one that was just found."""
        positions, slots = self._positions[:size], self._slots[:size]
        self._token_ids[:size].copy_(self._greedy.token_ids[:size])
        positions += 1
        blocks = self._block_tables[:size].gather(1, (positions // self.block_size).unsqueeze(1)).squeeze(1)
        slots.copy_(torch.where(slots == NO_SLOT, NO_SLOT, blocks * self.block_size + positions % self.block_size))

    def _record(self, size: int, recorder: Recorder) -> bool:
        self._slots.fill_(NO_SLOT)
        try:
            self._replays[size] = recorder.record(lambda: self._decode(size))
        except RuntimeError as error:
            reason = str(error.__context__ or error).splitlines()[0]  # the record's end only says that something went wrong
            logger.warning("steps of %d sequences could not be recorded, and fewer were not tried: %s", size, reason)
            return False
        return True

    def _decode(self, size: int) -> None:
        context = ForwardContext(
            positions=self._positions[:size],
            slot_mapping=self._slots[:size],
            block_tables=self._block_tables[:size],
            query_lengths=[1] * size,
            context_lengths=[],  # differ from step to step, and are on the device
            num_decodes=size,
            sequence_ids=[],
            prompt_lengths=[],
        )
        logits = self.model.logits(self.model.forward(self._token_ids[:size], context, self.attention))
        self._logits[:size].copy_(logits)
        self._greedy.first(size).copy_(self.sampler.greedy(logits))


def recorded(build: Callable[[Recorder], DecodeGraphs]) -> DecodeGraphs | None:
    """As CUDA graphs. None: the device has no memory for them, or none could be recorded."""
    start_seconds = time.perf_counter()
    try:
        graphs = build(CudaRecorder())
    except torch.OutOfMemoryError as error:
        logger.warning("no memory to record decode steps (--cuda-graphs): %s", str(error).splitlines()[0])
        return None
    seconds = time.perf_counter() - start_seconds
    logger.info("decode steps recorded sizes=%s seconds=%.1f", ",".join(map(str, graphs.sizes)), seconds)
    return graphs if graphs.sizes else None

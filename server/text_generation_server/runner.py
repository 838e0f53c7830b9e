"""Runner: one rank's model, cache and sampler, and one step after the other.

In: Step messages. Out: StepResults. Owns the device: every method after construction runs on the one device thread.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from text_generation_proto.shard_pb2 import Step, StepResult, Timings
from text_generation_server import device as devices
from text_generation_server.attention import choose_cache_dtype
from text_generation_server.batch import Batch
from text_generation_server.block_tables import BlockTables
from text_generation_server.capacity import default_batch_tokens, fitting_block_size, full_step
from text_generation_server.config import ShardConfig
from text_generation_server.decode_graphs import DecodeGraphs, recorded
from text_generation_server.errors import ConfigurationError, ShardLost, StepError
from text_generation_server.kv_cache import KVCache, block_bytes
from text_generation_server.launched import Launched
from text_generation_server.layers.quantized import FEW_ROWS
from text_generation_server.logits import Watermark
from text_generation_server.models import ModelFolder
from text_generation_server.parallel import Parallel
from text_generation_server.sampler import Sampled, Sampler
from text_generation_server.sequences import Chunk, Sequences
from text_generation_server.step_result import add_prompts, add_tokens

logger = logging.getLogger(__name__)

CPU_KV_CACHE_GIB = 1.0
WARM_UP_TOKENS = 16
STATE_COPIES = 2  # while decoding sequences are put together anew, the old rows are still there
CUDA_MEMORY_SHARE = 0.92  # of what the measured step leaves; the rest is for fragments and for batches of many decodes


class Runner:
    def __init__(self, config: ShardConfig, folder: ModelFolder, parallel: Parallel, device: torch.device) -> None:
        """Loads the weights, measures a full step on CUDA, and takes the memory for the KV cache.

        Raises:
            ModelError, ConfigurationError: with one line that says what does not fit.
        """
        self.device = device
        self.parallel = parallel
        self.dtype = devices.choose_dtype(config.dtype, device)
        self.folder = folder
        peak_memory = devices.PeakMemory()
        with devices.returning_freed_memory():
            self.model, self.weight_bytes_read = folder.load(
                device, self.dtype, parallel, config.quantize, config.random_weights
            )
        self.peak_loading_bytes = peak_memory.read_bytes()
        self.max_batch_tokens = config.max_batch_tokens or default_batch_tokens(self.model, device)
        # Where a prompt cannot be computed in parts, a whole sequence must fit in a step: it may have to begin anew.
        self.max_positions = self.model.config.max_positions
        if not self.model.chunked_prefill:
            self.max_positions = min(self.max_positions, self.max_batch_tokens)
        watermark = Watermark(config.watermark_gamma, config.watermark_delta)
        self.sampler = Sampler(self.model.config.vocab_size, parallel, watermark, self.model.decoding)
        self.graphs: DecodeGraphs | None = None
        self.block_size = fitting_block_size(self.model, config.block_size, self.max_positions)
        hidden_dtype = folder.hidden_dtype(self.dtype, device)
        own_dtype = choose_cache_dtype(self.model.kv_shapes, self.block_size, self.dtype, hidden_dtype, device)
        self.kv_cache_dtype = own_dtype if config.kv_cache_dtype == "auto" else torch.float8_e4m3fn
        self.block_tables = BlockTables(self.block_size, device)
        self.timings = Timings()
        self._launched: Launched | None = None  # and not done yet
        self._last: Launched | None = None  # that was done
        self._latest: torch.Tensor | None = None  # the tokens that were chosen last, on the device
        num_blocks = parallel.minimum(self._num_blocks(config))
        self.cache = self._make_cache(num_blocks)
        self.attention = self.model.make_attention(self.cache)
        self.sequences = self._make_sequences(num_blocks)
        self.warm_up()
        self.graphs = self._record_graphs(config)

    @property
    def num_blocks(self) -> int:
        return self.cache.num_blocks

    @torch.inference_mode()
    def warm_up(self) -> None:
        """One prompt chunk and one decode step, so that the first request does not pay for first calls."""
        length = min(self.max_batch_tokens, self.block_size, WARM_UP_TOKENS)
        prompt, decode = Step(), Step()
        prompt.add.add(id=0, token_ids=[0] * length)
        prompt.work.add(sequence_id=0, start=0, length=length, block_ids=[0, 1], sample=True)
        decode.work.add(sequence_id=0, start=length, length=1, sample=True)
        self._run(prompt)
        self._run(decode)
        self.reset()

    def execute(self, step: Step) -> StepResult:
        """Computes the step, and waits for it.

        Raises:
            ShardLost: as `launch`.
        """
        results: list[StepResult] = []
        self.launch(step, results.append)
        self.settle()
        return results[0]

    @torch.inference_mode()
    def launch(self, step: Step, deliver: Callable[[StepResult], None]) -> None:
        """Hands the step's work to the device. `deliver` gets its result before `settle` returns, after those of all steps
        before it, of which one at most is still computed when this one is launched. An error is the result's, except when the
        other ranks are lost: that is the process's.

        Raises:
            ShardLost: this rank can no longer keep pace with the others and must end. With several ranks that is so after
                any failure within a forward: nobody knows which collective the others wait in.
        """
        launched = Launched(step, self.device, deliver)
        with self._reporting(launched):
            self._compute(launched)
        self.settle()
        self._launched = launched

    def settle(self) -> None:
        """Waits until what was launched is done, and delivers its result.

        Raises:
            ShardLost: as above.
        """
        launched, self._launched = self._launched, None
        if launched is None:
            return
        with self._reporting(launched):
            launched.finish()
            self.timings.step_micros += launched.step_micros(self._last)
            self.timings.wait_micros += launched.wait_micros(self._last)
        self.timings.num_steps += 1
        self._last = launched
        launched.deliver(launched.result)

    @property
    def is_computing(self) -> bool:
        """Whether the device still works on what was launched."""
        return self._launched is not None and not self._launched.laps.are_over()

    @contextlib.contextmanager
    def _reporting(self, launched: Launched) -> Iterator[None]:
        """What goes wrong within it becomes the step's result."""
        step = launched.step
        try:
            yield
        except StepError as error:
            logger.error("step refused id=%d reason=%s", step.id, error)
            self._fail(launched, str(error))
        except ShardLost:
            raise
        except Exception as error:  # the outermost loop of this process: the step fails, the server goes on
            logger.exception("step failed id=%d", step.id)
            if self.parallel.world_size > 1 or not devices.works(self.device):
                raise ShardLost(f"this rank failed within a step: {error}") from error
            self._fail(launched, f"{type(error).__name__}: {error}")

    def _fail(self, launched: Launched, reason: str) -> None:
        self.sequences.fail(launched.step)
        launched.fail(reason)

    def begin(self) -> None:
        """A new driver: nothing is known, and all ranks are ready for its first step.

        Raises:
            ShardLost: one of them is not.
        """
        self.reset()
        self.parallel.meet()

    def reset(self) -> None:
        """Forgets all sequences: a driver is gone."""
        self.model.forget(self.sequences.ids)
        self.sequences.clear()
        self._last = None

    def _run(self, step: Step) -> None:
        """Computes the step. Nobody gets its result, and its errors are the caller's."""
        launched = Launched(step, self.device, lambda result: None)
        self._compute(launched)
        launched.finish()

    def _compute(self, launched: Launched) -> None:
        """Waits for the step before only where a token of it must be known here."""
        step = launched.step
        self.model.forget(step.drop)
        chunks = self.sequences.apply(step)
        is_greedy = not (step.num_speculative or self.sampler.rules) and all(chunk.is_greedy for chunk in chunks)
        if not is_greedy:
            self.settle()
        num_left = max(1, step.num_iterations)
        while chunks:
            self._guess(chunks, step.num_speculative)
            batch = Batch.of(chunks, self.block_tables, self._latest)
            launched.laps.mark()
            num_left -= self._choose_greedy(batch, num_left, launched) if is_greedy else self._sample(batch, launched)
            chunks = [chunk.sequence.decode() for chunk in chunks] if num_left else []
        launched.end()

    def _guess(self, chunks: list[Chunk], num_tokens: int) -> None:
        """Sequences that decode may compute a few positions more, where nothing but blocks must be forgotten of wrong ones."""
        if not num_tokens or not self.model.prefix_cache:
            return
        room = self.max_batch_tokens - sum(chunk.length for chunk in chunks)
        for chunk in chunks:
            if chunk.sample and chunk.sequence.decodes:
                chunk.add_guesses(chunk.sequence.guess(min(num_tokens, room), self.block_size))
                room -= len(chunk.guesses)

    def _choose_greedy(self, batch: Batch, num_iterations: int, launched: Launched) -> int:
        """One forward, or all of the iterations where there is a record of them, without a look at what is chosen. Returns how
        many were made."""
        found = self.graphs.decode_several(batch, num_iterations) if self.graphs else None
        if found is not None:
            launched.laps.mark()
        else:
            logits = self._forward(batch, launched)
            found = [self.sampler.greedy(logits)] if logits is not None else []
        batch.note_computed()
        launched.promise(batch.chunks, found)
        if found:
            self._latest = found[-1].token_ids
        return max(1, len(found))

    def _sample(self, batch: Batch, launched: Launched) -> int:
        """One forward, and the choice of its tokens, which are known afterwards."""
        decoded = self.graphs.decode(batch) if self.graphs else None
        if decoded is not None:
            launched.laps.mark()
        logits, greedy = decoded or (self._forward(batch, launched), None)
        sampled = self.sampler.sample(logits, batch.sampled, greedy) if logits is not None else Sampled([], [], [], [])
        batch.note_computed()
        add_tokens(launched.result, batch.chunks, sampled)
        return 1

    def _forward(self, batch: Batch, launched: Launched) -> torch.Tensor | None:
        """→ logits [num_sampled, vocab_size_local], if any are wanted."""
        hidden = self.model.forward(batch.token_ids, batch.context, self.attention)
        logits = self.model.logits(batch.pick_sampled(hidden)) if batch.sampled else None
        launched.laps.mark()
        if batch.prompts:
            found = self.sampler.logprobs.of_prompts(hidden, batch.prompts, self.model.logits)
            add_prompts(launched.result, batch.prompts, found)
        return logits

    @torch.inference_mode()
    def _record_graphs(self, config: ShardConfig) -> DecodeGraphs | None:
        sizes = self._decode_sizes(config)
        if not sizes or not self.attention.fixed_launches:
            return None
        max_blocks = min(-(-self.max_positions // self.block_size), self.num_blocks)
        parts = self.model, self.attention, self.sampler, sizes, max_blocks, self.block_size, self.device
        return recorded(lambda recorder: DecodeGraphs(*parts, recorder))

    def _decode_sizes(self, config: ShardConfig) -> list[int]:
        """Of the batches whose steps are to be recorded. Not with several ranks: they would have to agree on what each of them
        could record, and nothing would notice a rank that hangs within a record."""
        if self.device.type != "cuda" or self.parallel.world_size > 1 or not self.model.fixed_launches:
            return []
        # Of more rows bitsandbytes looks for outliers on the device, and waits for it.
        most = FEW_ROWS if config.quantize == "bitsandbytes" else self.max_batch_tokens
        return [size for size in config.decode_sizes if size <= most]

    def _make_cache(self, num_blocks: int) -> KVCache:
        return KVCache(self.model.kv_shapes, num_blocks, self.block_size, self.kv_cache_dtype, self.device)

    def _make_sequences(self, num_blocks: int) -> Sequences:
        vocab_size, decoding = self.model.config.vocab_size, self.model.decoding
        return Sequences(self.block_size, num_blocks, self.max_batch_tokens, vocab_size, decoding)

    def _num_blocks(self, config: ShardConfig) -> int:
        """How many blocks this rank can hold.

        Raises:
            ConfigurationError: fewer than one sequence of two blocks needs.
        """
        # A sequence holds one block at least, so as many states as blocks are enough.
        cost = block_bytes(self.model.kv_shapes, self.block_size, self.kv_cache_dtype) + STATE_COPIES * self.model.state_bytes
        if config.kv_cache_gib is None and self.device.type == "cuda":
            budget = self._free_cuda_bytes(config)
        else:
            budget = int((config.kv_cache_gib or CPU_KV_CACHE_GIB) * 2**30)
        if budget < 2 * cost:
            raise ConfigurationError(f"no room for the KV cache: {budget} bytes, one block of it takes {cost}")
        return budget // cost

    def _free_cuda_bytes(self, config: ShardConfig) -> int:
        """What a step of a whole token budget of prompts, with their log-probabilities, leaves of this rank's share."""
        num_blocks = -(-self.max_batch_tokens // self.block_size) + -(-self.max_batch_tokens // self.max_positions) + 1
        self.cache = self._make_cache(num_blocks)
        self.attention = self.model.make_attention(self.cache)
        self.sequences = self._make_sequences(num_blocks)
        step = full_step(self.max_batch_tokens, self.max_positions, self.block_size)
        torch.cuda.reset_peak_memory_stats(self.device)
        with torch.inference_mode():
            self._run(step)
        peak = torch.cuda.max_memory_allocated(self.device)
        cache_bytes = sum(tensor.nbytes for tensor in (*self.cache.keys, *self.cache.values))
        del self.cache, self.attention
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.device)
        others = total - free - torch.cuda.memory_reserved(self.device)
        usable = min(total * config.cuda_memory_fraction, total - others)
        return int((usable - (peak - cache_bytes) - self._graph_bytes(config)) * CUDA_MEMORY_SHARE)

    def _graph_bytes(self, config: ShardConfig) -> int:
        """What recorded steps hold, of which logits are nearly all: in the weights' type, in float32, and as they are kept."""
        largest = max(self._decode_sizes(config), default=0)
        return largest * self.sampler.vocab_size_local * (self.dtype.itemsize + 2 * torch.float32.itemsize)


def load_runner(config: ShardConfig, path: Path) -> Runner:
    """The other ranks met, the weights in memory, the first step behind it."""
    folder = ModelFolder.read(path, config.trust_remote_code)
    folder.check_world_size(config.world_size)  # before the ranks wait for each other
    device = devices.choose_device()
    devices.set_num_threads(config.num_threads, config.world_size, device)
    parallel = Parallel.connect(
        config.rank,
        config.world_size,
        device,
        config.master_addr,
        config.master_port,
        config.collective_timeout_seconds,
        config.one_shot_all_reduce,
    )
    start_seconds = time.perf_counter()
    runner = Runner(config, folder, parallel, device)
    if config.num_threads is None and config.world_size == 1:
        devices.use_one_thread_for_small_models(runner.model.weight_bytes)
    logger.info(
        "ready model_type=%s dtype=%s device=%s quantize=%s num_threads=%d num_blocks=%d weight_bytes=%d loading_seconds=%.1f",
        folder.model_type,
        str(runner.dtype).removeprefix("torch."),
        device,
        config.quantize,
        torch.get_num_threads(),
        runner.num_blocks,
        runner.model.weight_bytes,
        time.perf_counter() - start_seconds,
    )
    return runner

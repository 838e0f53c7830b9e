"""Batch: one step of the protocol as the tensors of one forward, and the state a shard keeps of each sequence.

In: a Step message and the sequences known so far. Out: packed token ids, a ForwardContext and the rows to sample.
What reads messages elsewhere (`runner`, `generation`, `service`) only passes them on.
"""

import dataclasses
import math

import torch

from text_generation_proto.shard_pb2 import NewSequence, SamplingParameters, Step, Work
from text_generation_server.attention.context import ForwardContext
from text_generation_server.decoding import Decoding
from text_generation_server.errors import StepError


@dataclasses.dataclass(frozen=True, slots=True)
class Sampling:
    """SamplingParameters with their defaults filled in; `None` turns a filter off."""

    do_sample: bool
    temperature: float
    top_k: int | None
    top_p: float | None
    repetition_penalty: float
    seed: int
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    typical_p: float | None = None
    logit_bias: dict[int, float] = dataclasses.field(default_factory=dict)
    watermark: bool = False

    @property
    def changes_logits(self) -> bool:
        """Whether anything at all is to be done before temperature and filters: for most requests there is not."""
        penalties = self.repetition_penalty != 1.0 or self.frequency_penalty or self.presence_penalty
        return bool(penalties or self.logit_bias or self.watermark)

    @classmethod
    def from_proto(cls, message: SamplingParameters) -> "Sampling":
        """
        Raises:
            StepError: a value out of range.
        """
        sampling = cls(
            do_sample=message.do_sample,
            temperature=message.temperature if message.HasField("temperature") else 1.0,
            top_k=message.top_k if message.HasField("top_k") else None,
            top_p=message.top_p if message.HasField("top_p") and message.top_p < 1 else None,
            repetition_penalty=message.repetition_penalty if message.HasField("repetition_penalty") else 1.0,
            seed=message.seed,
            frequency_penalty=message.frequency_penalty,
            presence_penalty=message.presence_penalty,
            typical_p=message.typical_p if message.HasField("typical_p") and message.typical_p != 1 else None,
            logit_bias=dict(message.logit_bias),
            watermark=message.watermark,
        )
        sampling._check()
        return sampling

    def _check(self) -> None:
        if not (self.temperature > 0 and self.repetition_penalty > 0):
            raise StepError("temperature and repetition_penalty must be strictly positive")
        if self.top_k == 0 or (self.top_p is not None and not self.top_p > 0):
            raise StepError("top_k and top_p must be strictly positive")
        if self.typical_p is not None and not 0 < self.typical_p <= 1:
            raise StepError("typical_p must be in (0, 1]")
        if not all(map(math.isfinite, (self.frequency_penalty, self.presence_penalty, *self.logit_bias.values()))):
            raise StepError("frequency_penalty, presence_penalty and logit_bias must be finite")


@dataclasses.dataclass(slots=True)
class SequenceState:
    """What a shard remembers of a sequence between steps: its tokens and where their keys and values are."""

    id: int
    token_ids: list[int]
    sampling: Sampling
    num_prompt_tokens: int
    num_top_tokens: int = 0
    prompt_logprobs: bool = False
    max_new_tokens: int = 0  # 0: unknown
    start_token_id: int | None = None  # what a decoder begins with where the prompt is not its own
    block_table: list[int] = dataclasses.field(default_factory=list)

    @classmethod
    def from_proto(cls, message: NewSequence, decoding: Decoding | None) -> "SequenceState":
        return cls(
            id=message.id,
            token_ids=list(message.token_ids),
            sampling=Sampling.from_proto(message.sampling),
            num_prompt_tokens=message.num_prompt_tokens or len(message.token_ids),
            num_top_tokens=message.num_top_tokens,
            prompt_logprobs=message.prompt_logprobs and decoding is None,  # nobody says a prompt that is only read
            max_new_tokens=message.max_new_tokens,
            start_token_id=decoding.start_token_id if decoding else None,
        )

    @property
    def generated(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def said(self) -> list[int]:
        """The tokens that the next one is said after, which watermark and penalties look at."""
        return self.token_ids if self.start_token_id is None else [self.start_token_id, *self.generated]

    def check_new(self, vocab_size: int) -> None:
        """
        Raises:
            StepError: it names tokens that do not exist, or asks for more than there are.
        """
        if max((*self.token_ids, *self.sampling.logit_bias), default=0) >= vocab_size:
            raise StepError(f"sequence {self.id}: token ids must be less than {vocab_size}")
        if self.num_top_tokens > vocab_size:
            raise StepError(f"sequence {self.id}: there are only {vocab_size} tokens to be top tokens")
        if self.num_prompt_tokens > len(self.token_ids):
            raise StepError(f"sequence {self.id}: its {len(self.token_ids)} tokens have no prompt of {self.num_prompt_tokens}")

    def check(self, work: Work, block_size: int, num_blocks: int) -> None:
        """
        Raises:
            StepError: the work reaches past the sequence's tokens or blocks, or names a block that does not exist.
        """
        end = work.start + work.length
        if not 0 < work.length <= end <= len(self.token_ids):
            raise StepError(f"sequence {self.id}: cannot compute [{work.start}, {end}) of {len(self.token_ids)} tokens")
        if end > len(self.block_table) * block_size:
            raise StepError(f"sequence {self.id}: position {end - 1} is past its {len(self.block_table)} blocks")
        if any(block >= num_blocks for block in work.block_ids):
            raise StepError(f"sequence {self.id}: there are only {num_blocks} blocks")


@dataclasses.dataclass(frozen=True, slots=True)
class PromptRows:
    """Neighbouring rows of the packed batch that say how likely a prompt's tokens at `positions` were."""

    sequence: SequenceState
    positions: range
    rows: range  # each one before that of its position's own token

    @classmethod
    def from_work(cls, sequence: SequenceState, work: Work, first_row: int) -> "PromptRows":
        positions = range(work.start + 1, min(work.start + work.length + 1, sequence.num_prompt_tokens))
        return cls(sequence, positions, range(first_row, first_row + len(positions)))

    @property
    def target_ids(self) -> list[int]:
        return self.sequence.token_ids[self.positions.start : self.positions.stop]


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    token_ids: torch.Tensor  # [num_tokens] int64, packed, sequences of one token first
    context: ForwardContext
    sampled_rows: torch.Tensor  # [num_sampled] int64: rows of the packed batch whose next token is wanted
    sampled: list[SequenceState]  # the sequences of those rows
    prompts: list[PromptRows]  # whose log-probabilities are wanted

    @classmethod
    def from_work(cls, works: list[tuple[SequenceState, Work]], block_size: int, device: torch.device) -> "Batch":
        decodes = [pair for pair in works if pair[1].length == 1]
        ordered = decodes + [pair for pair in works if pair[1].length > 1]
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        sampled_rows: list[int] = []
        prompts: list[PromptRows] = []
        for sequence, work in ordered:
            if sequence.prompt_logprobs:
                prompts.append(PromptRows.from_work(sequence, work, len(token_ids)))
            token_ids += sequence.token_ids[work.start : work.start + work.length]
            positions += range(work.start, work.start + work.length)
            slots += _slots(sequence.block_table, work.start, work.length, block_size)
            if work.sample:
                sampled_rows.append(len(token_ids) - 1)
        context = ForwardContext(
            positions=torch.tensor(positions, device=device),
            slot_mapping=torch.tensor(slots, device=device),
            block_tables=_padded([sequence.block_table for sequence, _ in ordered], device),
            query_lengths=[work.length for _, work in ordered],
            context_lengths=[work.start + work.length for _, work in ordered],
            num_decodes=len(decodes),
            sequence_ids=[sequence.id for sequence, _ in ordered],
            prompt_lengths=[sequence.num_prompt_tokens for sequence, _ in ordered],
        )
        return cls(
            token_ids=torch.tensor(token_ids, device=device),
            context=context,
            sampled_rows=torch.tensor(sampled_rows, device=device, dtype=torch.long),
            sampled=[sequence for sequence, work in ordered if work.sample],
            prompts=[prompt for prompt in prompts if prompt.rows],
        )


class Sequences:
    """All sequences a driver has added and not dropped; applies a step's difference."""

    def __init__(
        self,
        block_size: int,
        num_blocks: int,
        max_batch_tokens: int,
        vocab_size: int,
        decoding: Decoding | None = None,
    ) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.max_batch_tokens = max_batch_tokens
        self.vocab_size = vocab_size
        self.decoding = decoding
        self._states: dict[int, SequenceState] = {}
        self._failed: set[int] = set()

    @property
    def ids(self) -> list[int]:
        return list(self._states)

    def apply(self, step: Step) -> list[tuple[SequenceState, Work]]:
        """Drops, adds, hands out blocks; returns the work to be done. Sequences of a failed step are passed over until
        they are dropped: steps that were under way already may still name them.

        Raises:
            StepError: the step contradicts what was said before.
        """
        for sequence_id in step.drop:
            self._states.pop(sequence_id, None)
            self._failed.discard(sequence_id)
        for message in step.add:
            if message.id in self._states:
                raise StepError(f"sequence {message.id} is added twice")
            state = SequenceState.from_proto(message, self.decoding)
            state.check_new(self.vocab_size)
            self._states[message.id] = state
        if sum(work.length for work in step.work) > self.max_batch_tokens:
            raise StepError(f"a step may compute at most {self.max_batch_tokens} tokens")
        if len({work.sequence_id for work in step.work}) < len(step.work):
            raise StepError("a step may compute each sequence once")
        return [self._take(work) for work in step.work if work.sequence_id not in self._failed]

    def fail(self, step: Step) -> None:
        self._failed.update(work.sequence_id for work in step.work)

    def clear(self) -> None:
        self._states.clear()
        self._failed.clear()

    def _take(self, work: Work) -> tuple[SequenceState, Work]:
        state = self._states.get(work.sequence_id)
        if state is None:
            raise StepError(f"sequence {work.sequence_id} was never added")
        state.block_table += work.block_ids
        state.check(work, self.block_size, self.num_blocks)
        return state, work


def _slots(block_table: list[int], start: int, length: int, block_size: int) -> list[int]:
    return [
        block_table[position // block_size] * block_size + position % block_size
        for position in range(start, start + length)
    ]


def _padded(block_tables: list[list[int]], device: torch.device) -> torch.Tensor:
    """[num_sequences, max_blocks]; block 0 stands where a sequence has no block, and is masked by its length."""
    width = max(map(len, block_tables), default=0)
    return torch.tensor([table + [0] * (width - len(table)) for table in block_tables], device=device)

"""Sequences: what a shard remembers between steps, and the chunks of them that a step computes.

In: Step messages. Out: chunks. What reads messages elsewhere (`runner`, `generation`, `service`) only passes them on.
"""

import dataclasses
import heapq

from text_generation_proto.shard_pb2 import NewSequence, Step, Work
from text_generation_server.decoding import Decoding
from text_generation_server.errors import StepError
from text_generation_server.prompt_lookup import PromptLookup
from text_generation_server.sampling import Sampling


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
    row: int = 0  # among all sequences that are known at the same time
    block_table: list[int] = dataclasses.field(default_factory=list)
    num_copied_blocks: int = 0  # of the block table, that the device has
    num_computed: int | None = None  # positions whose keys and values are there; None before the first work
    num_added_tokens: int = 0  # that it came with: the prompt, and after a preemption what it had generated
    lookup: PromptLookup | None = None  # made when first asked for guesses
    takes_greedy: bool = dataclasses.field(init=False)  # whether all it asks for is the likeliest token, next to the prompt's

    def __post_init__(self) -> None:
        self.takes_greedy = not (self.sampling.do_sample or self.sampling.changes_logits or self.num_top_tokens)

    @classmethod
    def from_proto(cls, message: NewSequence, decoding: Decoding | None) -> "SequenceState":
        return cls(
            id=message.id,
            token_ids=list(message.token_ids),
            sampling=Sampling.from_proto(message.sampling),
            num_prompt_tokens=message.num_prompt_tokens or len(message.token_ids),
            num_added_tokens=len(message.token_ids),
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
    def decodes(self) -> bool:
        """Whether its last token was sampled here. Before that a driver expects one token from it, and not those of guesses,
        even where a prompt's last chunk is as short as a decoding sequence's."""
        return len(self.token_ids) > self.num_added_tokens

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

    def take(self, work: Work, num_iterations: int, block_size: int, num_blocks: int) -> "Chunk":
        """The work's blocks, and its positions. A GPU waits for this: what is read of a message is read once.

        Raises:
            StepError: the work reaches past the sequence's tokens or blocks, names a block that does not exist, or samples
                where the next token is known.
        """
        start, length, new_blocks = work.start, work.length, work.block_ids
        if new_blocks:
            self.block_table += new_blocks
            if max(new_blocks) >= num_blocks:
                raise StepError(f"sequence {self.id}: there are only {num_blocks} blocks")
        if self.num_computed is not None:
            start = min(start, self.num_computed)
        end = start + length
        if not 0 < length <= end <= len(self.token_ids):
            raise StepError(f"sequence {self.id}: cannot compute [{start}, {end}) of {len(self.token_ids)} tokens")
        if work.sample and end < len(self.token_ids):
            raise StepError(f"sequence {self.id}: what follows its token {end - 1} is known, and not to be sampled")
        last = end - 1 + max(0, num_iterations - 1)
        if last >= len(self.block_table) * block_size:
            raise StepError(f"sequence {self.id}: position {last} is past its {len(self.block_table)} blocks")
        return Chunk(self, start, length, work.sample)

    def guess(self, num_tokens: int, block_size: int) -> list[int]:
        """At most so many tokens that may come next, no more than there is room and wish for."""
        room = len(self.block_table) * block_size - len(self.token_ids)
        wanted = self.max_new_tokens - self.num_generated - 1 if self.max_new_tokens else num_tokens
        if self.lookup is None:
            self.lookup = PromptLookup()
        return self.lookup.guess(self.token_ids, min(num_tokens, room, wanted))

    def decode(self) -> "Chunk":
        """The next position, with nothing guessed."""
        return Chunk(self, len(self.token_ids) - 1, 1, sample=True)

    def with_guesses(self, guesses: list[int]) -> "SequenceState":
        """The sequence as it would be if these tokens came next."""
        return dataclasses.replace(self, token_ids=self.token_ids + guesses) if guesses else self


@dataclasses.dataclass(slots=True)
class Chunk:
    """Positions [start, start + length) of one sequence, computed in one forward. The last `len(guesses)` of them are those of
    tokens that it may not have: each is checked by what is sampled before it."""

    sequence: SequenceState
    start: int
    length: int
    sample: bool
    guesses: list[int] = dataclasses.field(default_factory=list)

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def token_ids(self) -> list[int]:
        return self.sequence.with_guesses(self.guesses).token_ids[self.start : self.end]

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is asked of it but the likeliest token."""
        sequence = self.sequence
        return sequence.takes_greedy and not (sequence.prompt_logprobs and self.start < sequence.num_prompt_tokens)

    @property
    def sampled(self) -> list[SequenceState]:
        """The sequence before each token that is sampled, one for each of the chunk's last rows."""
        return [self.sequence.with_guesses(self.guesses[:index]) for index in range(len(self.guesses) + 1)]

    def add_guesses(self, guesses: list[int]) -> None:
        self.guesses = guesses
        self.length += len(guesses)

    def promise(self, row: int) -> None:
        """The sequence's next token will be in this row of those that the device chooses, and known here later. Until then
        ~row, which is no token's id, stands in its place."""
        self.sequence.num_computed = len(self.sequence.token_ids)
        self.sequence.token_ids.append(~row)

    def accept(self, token_ids: list[int]) -> int:
        """Enters what was sampled after the chunk's own last token and after each guess, as far as the guesses were right, in
        place of what was promised. Returns how many were."""
        num_right = 0
        while num_right < len(self.guesses) and self.guesses[num_right] == token_ids[num_right]:
            num_right += 1
        sequence, num_computed = self.sequence, self.end - len(self.guesses) + num_right
        sequence.token_ids[num_computed - num_right : num_computed + 1] = token_ids[: num_right + 1]
        sequence.num_computed = max(num_computed, sequence.num_computed or 0)
        if sequence.lookup is not None:
            sequence.lookup.learn(len(self.guesses), num_right)
        return num_right


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
        self._free_rows: list[int] = []  # a heap: rows stay few

    @property
    def ids(self) -> list[int]:
        return list(self._states)

    def apply(self, step: Step) -> list[Chunk]:
        """Drops, adds, hands out blocks; returns the work to be done. Sequences of a failed step are passed over until
        they are dropped: steps that were under way already may still name them.

        Raises:
            StepError: the step contradicts what was said before.
        """
        for sequence_id in step.drop:
            self._drop(sequence_id)
        for message in step.add:
            self._add(message)
        num_iterations, works = step.num_iterations, [(work.sequence_id, work) for work in step.work]
        if len(dict(works)) < len(works):
            raise StepError("a step may compute each sequence once")
        chunks = [self._take(number, work, num_iterations) for number, work in works if number not in self._failed]
        if sum([chunk.length for chunk in chunks]) > self.max_batch_tokens:
            raise StepError(f"a step may compute at most {self.max_batch_tokens} tokens")
        if num_iterations > 1 and not all(chunk.sample and chunk.length == 1 for chunk in chunks):
            raise StepError("a step of several iterations may only decode")
        if num_iterations > 1 and step.num_speculative:
            raise StepError("a step of several iterations has no guesses")
        return chunks

    def fail(self, step: Step) -> None:
        self._failed.update(work.sequence_id for work in step.work)

    def clear(self) -> None:
        for sequence_id in self.ids:
            self._drop(sequence_id)
        self._failed.clear()

    def _add(self, message: NewSequence) -> None:
        if message.id in self._states:
            raise StepError(f"sequence {message.id} is added twice")
        state = SequenceState.from_proto(message, self.decoding)
        state.check_new(self.vocab_size)
        state.row = heapq.heappop(self._free_rows) if self._free_rows else len(self._states)
        self._states[message.id] = state

    def _drop(self, sequence_id: int) -> None:
        state = self._states.pop(sequence_id, None)
        self._failed.discard(sequence_id)
        if state is not None:
            heapq.heappush(self._free_rows, state.row)

    def _take(self, sequence_id: int, work: Work, num_iterations: int) -> Chunk:
        state = self._states.get(sequence_id)
        if state is None:
            raise StepError(f"sequence {sequence_id} was never added")
        return state.take(work, num_iterations, self.block_size, self.num_blocks)

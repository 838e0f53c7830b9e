"""Batch: what one forward computes, as tensors: packed token ids, a ForwardContext and the rows to sample.

In: chunks of sequences. Out: one Batch.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import torch

from text_generation_server.attention.context import ForwardContext
from text_generation_server.block_tables import BlockTables
from text_generation_server.device import send
from text_generation_server.sequences import Chunk, SequenceState


@dataclasses.dataclass(frozen=True, slots=True)
class PromptRows:
    """Neighbouring rows of the packed batch that say how likely a prompt's tokens at `positions` were."""

    sequence: SequenceState
    positions: range
    rows: range  # each one before that of its position's own token

    @classmethod
    def of(cls, chunk: Chunk, first_row: int) -> "PromptRows":
        positions = range(chunk.start + 1, min(chunk.end + 1, chunk.sequence.num_prompt_tokens))
        return cls(chunk.sequence, positions, range(first_row, first_row + len(positions)))

    @property
    def target_ids(self) -> list[int]:
        return self.sequence.token_ids[self.positions.start : self.positions.stop]


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    token_ids: torch.Tensor  # [num_tokens] int64, packed, sequences of one token first
    context: ForwardContext
    sampled_rows: torch.Tensor  # [num_sampled] int64: rows of the packed batch whose next token is wanted
    sampled: list[SequenceState]  # the sequences of those rows, each as it is there
    prompts: list[PromptRows]  # whose log-probabilities are wanted
    chunks: list[Chunk]  # in the order of their rows

    @property
    def only_decodes(self) -> bool:
        """Whether each sequence has one token, all of them are sampled, and nothing is asked of a prompt."""
        return self.context.num_decodes == len(self.chunks) == len(self.sampled) and not self.prompts

    def pick_sampled(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [num_wanted, hidden_size] of the context's wanted rows → [num_sampled, hidden_size]."""
        return hidden[self.sampled_rows] if self.prompts else hidden

    def note_computed(self) -> None:
        """The keys and values of all its positions are there, or will be before anything else is computed."""
        for chunk in self.chunks:
            chunk.sequence.num_computed = chunk.end - len(chunk.guesses)

    @classmethod
    def of(cls, chunks: list[Chunk], block_tables: BlockTables, latest: torch.Tensor | None = None) -> "Batch":
        """`latest` [num_rows] int64, on the device: the tokens that were promised to sequences and are not known here yet."""
        decodes = [chunk for chunk in chunks if chunk.length == 1]
        rows = _Rows(block_tables)
        rows.add_decodes(decodes)
        ordered = decodes
        if len(decodes) < len(chunks):
            ordered = decodes + [chunk for chunk in chunks if chunk.length > 1]
            for chunk in ordered[len(decodes) :]:
                rows.add(chunk)
        sequences = [chunk.sequence for chunk in ordered]
        places = [sequence.row for sequence in sequences]
        lists = [rows.token_ids, rows.positions, rows.slots, rows.sampled_rows, places, *block_tables.news(sequences)]
        token_ids, positions, slots, sampled_rows, *tables = _to_device(lists, block_tables.device)
        if latest is not None and min(rows.token_ids, default=0) < 0:
            token_ids = torch.where(token_ids < 0, latest[(~token_ids).clamp(min=0)], token_ids)
        prompts = [prompt for prompt in rows.prompts if prompt.rows]
        context = ForwardContext(
            positions=positions,
            slot_mapping=slots,
            block_tables=block_tables.of(sequences, *tables),
            query_lengths=[chunk.length for chunk in ordered],
            context_lengths=[chunk.start + chunk.length for chunk in ordered],
            num_decodes=len(decodes),
            sequence_ids=[sequence.id for sequence in sequences],
            prompt_lengths=[sequence.num_prompt_tokens for sequence in sequences],
            wanted_rows=None if prompts or len(sampled_rows) == len(token_ids) else sampled_rows,
        )
        return cls(
            token_ids=token_ids,
            context=context,
            sampled_rows=sampled_rows,
            sampled=rows.sampled,
            prompts=prompts,
            chunks=ordered,
        )


class _Rows:
    """The packed batch's rows as lists."""

    def __init__(self, block_tables: BlockTables) -> None:
        self.block_tables = block_tables
        self.token_ids: list[int] = []
        self.positions: list[int] = []
        self.slots: list[int] = []
        self.sampled_rows: list[int] = []
        self.sampled: list[SequenceState] = []
        self.prompts: list[PromptRows] = []

    def add_decodes(self, chunks: list[Chunk]) -> None:
        """The first ones, of one position each: as `add`, in a quarter of the time, which a GPU waits for."""
        self.token_ids = [chunk.sequence.token_ids[chunk.start] for chunk in chunks]
        self.positions = [chunk.start for chunk in chunks]
        self.slots = self.block_tables.slots_of_decodes(chunks)
        self.sampled_rows = [row for row, chunk in enumerate(chunks) if chunk.sample]
        self.sampled = [chunk.sequence for chunk in chunks if chunk.sample]
        self.prompts = [PromptRows.of(chunk, row) for row, chunk in enumerate(chunks) if chunk.sequence.prompt_logprobs]

    def add(self, chunk: Chunk) -> None:
        if chunk.sequence.prompt_logprobs:
            self.prompts.append(PromptRows.of(chunk, len(self.token_ids)))
        self.token_ids += chunk.token_ids
        self.positions += range(chunk.start, chunk.end)
        self.slots += self.block_tables.slots(chunk)
        if chunk.sample:
            self.sampled_rows += range(len(self.token_ids) - len(chunk.guesses) - 1, len(self.token_ids))
            self.sampled += chunk.sampled


def _to_device(lists: Sequence[list[int]], device: torch.device) -> list[torch.Tensor]:
    """Tensors of int64, in one copy. Each begins at a multiple of 16 bytes: Triton compiles a kernel anew for one that does
    not."""
    padded = [numbers + [0] * (len(numbers) % 2) for numbers in lists]
    packed = send(list(itertools.chain.from_iterable(padded)), torch.long, device)
    sizes = itertools.chain.from_iterable((len(numbers), len(numbers) % 2) for numbers in lists)
    return list(packed.split_with_sizes(list(sizes))[::2])

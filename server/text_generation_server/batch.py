"""Batch: what one forward computes, as tensors: packed token ids, a ForwardContext and the rows to sample.

In: chunks of sequences. Out: one Batch.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import torch

from text_generation_server.attention.context import ForwardContext
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

    @classmethod
    def of(cls, chunks: list[Chunk], block_size: int, device: torch.device) -> "Batch":
        decodes = [chunk for chunk in chunks if chunk.length == 1]
        ordered = decodes + [chunk for chunk in chunks if chunk.length > 1]
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        sampled_rows: list[int] = []
        prompts: list[PromptRows] = []
        for chunk in ordered:
            if chunk.sequence.prompt_logprobs:
                prompts.append(PromptRows.of(chunk, len(token_ids)))
            token_ids += chunk.token_ids
            positions += range(chunk.start, chunk.end)
            slots += _slots(chunk.sequence.block_table, chunk.start, chunk.length, block_size)
            if chunk.sample:
                sampled_rows += range(len(token_ids) - len(chunk.guesses) - 1, len(token_ids))
        tables = _padded([chunk.sequence.block_table for chunk in ordered])
        packed = _to_device([token_ids, positions, slots, sampled_rows, tables], device)
        packed_token_ids, packed_positions, slot_mapping, packed_rows, block_tables = packed
        context = ForwardContext(
            positions=packed_positions,
            slot_mapping=slot_mapping,
            block_tables=block_tables.view(len(ordered), -1),
            query_lengths=[chunk.length for chunk in ordered],
            context_lengths=[chunk.end for chunk in ordered],
            num_decodes=len(decodes),
            sequence_ids=[chunk.sequence.id for chunk in ordered],
            prompt_lengths=[chunk.sequence.num_prompt_tokens for chunk in ordered],
        )
        return cls(
            token_ids=packed_token_ids,
            context=context,
            sampled_rows=packed_rows,
            sampled=[sequence for chunk in ordered if chunk.sample for sequence in chunk.sampled],
            prompts=[prompt for prompt in prompts if prompt.rows],
            chunks=ordered,
        )


def _slots(block_table: list[int], start: int, length: int, block_size: int) -> list[int]:
    return [
        block_table[position // block_size] * block_size + position % block_size
        for position in range(start, start + length)
    ]


def _padded(block_tables: list[list[int]]) -> list[int]:
    """One after the other, all as long as the longest. Block 0 stands where a sequence has none; its length masks it."""
    width = max(map(len, block_tables), default=0)
    return list(itertools.chain.from_iterable(table + [0] * (width - len(table)) for table in block_tables))


def _to_device(lists: Sequence[list[int]], device: torch.device) -> list[torch.Tensor]:
    """Tensors of int64, in one copy. Each begins at a multiple of 16 bytes: Triton compiles a kernel anew for one that does
    not."""
    padded = [numbers + [0] * (len(numbers) % 2) for numbers in lists]
    packed = torch.tensor(list(itertools.chain.from_iterable(padded)), dtype=torch.long, device=device)
    parts = packed.split([len(numbers) for numbers in padded])
    return [part[: len(numbers)] for part, numbers in zip(parts, lists, strict=True)]

"""BlockTables: where the keys and values of all sequences are, kept on the device from step to step.

In: a step's sequences. Out: their block tables as one tensor. Each sequence has a row for as long as it is known, and only
blocks that are new go to the device.
"""

from collections.abc import Sequence

import torch

from text_generation_server.sequences import Chunk, SequenceState

MIN_ROWS, MIN_BLOCKS = 16, 16  # both double when they do not suffice


class BlockTables:
    def __init__(self, block_size: int, device: torch.device) -> None:
        self.block_size = block_size
        self.device = device
        self._table = torch.zeros(MIN_ROWS, MIN_BLOCKS, dtype=torch.long, device=device)

    def slots(self, chunk: Chunk) -> list[int]:
        """Where the keys and values of the chunk's positions go."""
        table, size = chunk.sequence.block_table, self.block_size
        return [table[position // size] * size + position % size for position in range(chunk.start, chunk.end)]

    def slots_of_decodes(self, chunks: Sequence[Chunk]) -> list[int]:
        """The same of chunks of one position each."""
        size = self.block_size
        return [chunk.sequence.block_table[chunk.start // size] * size + chunk.start % size for chunk in chunks]

    def news(self, sequences: Sequence[SequenceState]) -> tuple[list[int], list[int]]:
        """Blocks that the device does not know of yet, and their places in the table, which has room for them afterwards."""
        changed = [sequence for sequence in sequences if sequence.num_copied_blocks < len(sequence.block_table)]
        if not changed:
            return [], []
        self._make_room(max(sequence.row for sequence in changed), max(len(sequence.block_table) for sequence in changed))
        places: list[int] = []
        blocks: list[int] = []
        for sequence in changed:
            width = self._table.shape[1]
            new = sequence.block_table[sequence.num_copied_blocks :]
            if sequence.num_copied_blocks == 0:  # the row may have been another's
                new += [0] * (width - len(new))
            start = sequence.row * width + sequence.num_copied_blocks
            places += range(start, start + len(new))
            blocks += new
            sequence.num_copied_blocks = len(sequence.block_table)
        return places, blocks

    def of(
        self, sequences: Sequence[SequenceState], rows: torch.Tensor, new_places: torch.Tensor, new_blocks: torch.Tensor
    ) -> torch.Tensor:
        """→ [num_sequences, max_blocks]. The last three are on the device, and what `news` said. Block 0 stands where a
        sequence has none; its length masks it."""
        if len(new_places):
            self._table.view(-1)[new_places] = new_blocks
        width = max([len(sequence.block_table) for sequence in sequences], default=0)
        return self._table[:, :width].index_select(0, rows)

    def _make_room(self, row: int, num_blocks: int) -> None:
        num_rows, width = self._table.shape
        if row < num_rows and num_blocks <= width:
            return
        num_rows, width = _doubled(num_rows, row + 1), _doubled(width, num_blocks)
        table = self._table.new_zeros(num_rows, width)
        table[: self._table.shape[0], : self._table.shape[1]] = self._table
        self._table = table


def _doubled(size: int, needed: int) -> int:
    while size < needed:
        size *= 2
    return size

"""ForwardContext: what a forward needs beyond hidden states, as one immutable argument.

A batch is packed: all tokens of all sequences in one row, the decoding sequences (one token each) first.
"""

import dataclasses

import torch


@dataclasses.dataclass(frozen=True, slots=True)
class ForwardContext:
    positions: torch.Tensor  # [num_tokens] int64: each token's place in its sequence
    slot_mapping: torch.Tensor  # [num_tokens] int64: where each token's key and value go, block_id * block_size + offset
    block_tables: torch.Tensor  # [num_sequences, max_blocks] int64, padded with block 0
    query_lengths: list[int]  # tokens of each sequence in this batch; 1 for the first num_decodes
    context_lengths: list[int]  # tokens of each sequence that are attended to, this batch's included
    num_decodes: int
    sequence_ids: list[int]  # who they are, for models that keep something of them elsewhere
    prompt_lengths: list[int]  # tokens of each sequence's prompt, for models that do not treat it as what follows
    wanted_rows: torch.Tensor | None = None  # [num_wanted] int64: the tokens whose hidden states are read; None: all

    def pick_wanted(self, rows: torch.Tensor) -> torch.Tensor:
        """Of one row for each token, those that are wanted."""
        return rows if self.wanted_rows is None else rows[self.wanted_rows]

"""RowPositions: the embedding of positions of a decoder whose rows are not equally long.

In: a decoder's own module, which counts from the longest row's past. Out: one that is told each row's positions. Knows
nothing of what else the decoder does.
"""

import inspect
from typing import Any

import torch


class RowPositions(torch.nn.Module):
    positions: torch.Tensor  # [num_rows, length], set before each call of the decoder

    def __init__(self, table: torch.Tensor) -> None:
        """table [num_positions, hidden_size]"""
        super().__init__()
        self.table = table

    @classmethod
    def take_over(cls, decoder: Any, num_positions: int) -> "RowPositions | None":
        """Puts one in the place of the decoder's own module, if it has one."""
        embed = getattr(decoder, "embed_positions", None)
        if embed is None:
            return None
        decoder.embed_positions = cls(_table(embed, num_positions, decoder.dtype, decoder.device))
        return decoder.embed_positions

    def forward(self, *_: Any, **__: Any) -> torch.Tensor:
        """→ [num_rows, length, hidden_size]"""
        return torch.nn.functional.embedding(self.positions, self.table)


@torch.inference_mode()
def _table(embed: torch.nn.Module, num_positions: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[num_positions, hidden_size]: what the module says of a first call with so many tokens, none of which is padding. Some
    ask for their ids, some for their embeddings, some for their number only."""
    shape = torch.Size([1, num_positions])
    given: dict[str, Any] = {
        "input_ids_shape": shape,
        "inputs_embeds": torch.zeros(shape, dtype=dtype, device=device),
        "input_ids": torch.full(shape, (getattr(embed, "padding_idx", None) or 0) + 1, device=device),
    }
    name = next(iter(inspect.signature(embed.forward).parameters))
    return embed(given.get(name, given["input_ids"])).to(dtype).view(num_positions, -1).clone()

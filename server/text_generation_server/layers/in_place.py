"""Modules that stand where a model of another library had its own, with this rank's part of the weights.

In: loaded modules and what the plan says of them. Out: modules that are called alike. Knows nothing of models.
"""

import enum
from typing import Any

import torch

from text_generation_server.parallel import Parallel


class Style(enum.Enum):
    """What a linear does with the ranks' parts."""

    WHOLE = "whole"  # every rank has all of it
    COLUMN = "column"  # a part of the output, which the next module takes
    COLUMN_GATHERED = "column_gathered"  # a part of the output; all parts are put together
    ROW = "row"  # takes a part of the input; the sum over the ranks is the output
    ROW_SPLIT = "row_split"  # the same, but is given the whole input


class LinearInPlace(torch.nn.Module):
    """One of our linears where there was one of theirs. A row linear's bias is rank 0's business."""

    def __init__(self, linear: torch.nn.Module, style: Style, parallel: Parallel, like: torch.Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.style = style
        self.parallel = parallel
        self.weight = torch.empty(0, dtype=like.dtype, device=like.device)  # some models ask what type and where it is

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.style is Style.ROW_SPLIT:
            x = x[..., self.parallel.split(x.shape[-1], "columns")].contiguous()
        output = self.linear(x)
        if self.style in (Style.ROW, Style.ROW_SPLIT):
            return self.parallel.all_reduce(output)
        if self.style is Style.COLUMN_GATHERED:
            return torch.cat(self.parallel.all_gather(output).unbind(0), dim=-1)
        return output


class EmbeddingInPlace(torch.nn.Module):
    """An embedding of which each rank has some rows, from `start` on: ids [...] → the sum of the ranks' vectors."""

    def __init__(self, embedding: torch.nn.Embedding, start: int, parallel: Parallel) -> None:
        super().__init__()
        self.embedding = embedding
        self.start = start
        self.parallel = parallel

    @property
    def weight(self) -> torch.Tensor:
        return self.embedding.weight

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        local = token_ids - self.start
        absent = (local < 0) | (local >= self.embedding.weight.shape[0])
        vectors = self.embedding(local.masked_fill(absent, 0))
        return self.parallel.all_reduce(vectors.masked_fill(absent.unsqueeze(-1), 0))


class SummedInPlace(torch.nn.Module):
    """A module, experts say, whose output is the sum of what the ranks' parts of it say."""

    def __init__(self, module: torch.nn.Module, parallel: Parallel) -> None:
        super().__init__()
        self.module = module
        self.parallel = parallel

    def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
        return self.parallel.all_reduce(self.module(*args, **kwargs).contiguous())

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

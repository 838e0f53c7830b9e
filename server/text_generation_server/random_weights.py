"""RandomWeights: a checkpoint that is not there: how fast a model would be and how much memory it would take, before anyone
fetches its weights.

In: a tensor's name and shape, and which rows or columns of it. Out: that slice, drawn on the rank's device. It has as many
digits as most checkpoints are published with, and is the same each time it is asked for. What a model makes of it is noise.
"""

import logging
import zlib
from pathlib import Path

import torch

from text_generation_server.weights import Weights

logger = logging.getLogger(__name__)

PUBLISHED_DTYPE = torch.bfloat16
INITIALIZER_RANGE = 0.02  # as at the start of most trainings: nothing overflows, whatever the number of layers


class RandomWeights(Weights):
    def _locate(self, folder: Path, prefix: str) -> dict[str, tuple[Path, str]]:
        logger.warning("all weights are drawn at random (--random-weights): answers are noise")
        return {}

    def _part(self, name: str, shape: tuple[int, ...], rows: slice | None, columns: slice | None) -> torch.Tensor:
        """Scales of norms are ones, and biases zeros."""
        cuts = (rows or slice(None), columns or slice(None))
        size = [len(range(length)[cut]) for length, cut in zip(shape, cuts, strict=False)]
        part = torch.empty(size, dtype=PUBLISHED_DTYPE, device=self.device)
        if name.endswith(".bias"):
            return part.zero_()
        if len(shape) == 1:
            return part.fill_(1)
        seed = zlib.crc32(f"{name} {rows} {columns}".encode())
        return part.normal_(0, INITIALIZER_RANGE, generator=torch.Generator(self.device).manual_seed(seed))

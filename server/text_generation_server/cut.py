"""Cut: which part of a tensor a rank holds. Knows nothing of what the tensor is."""

import dataclasses
import itertools
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class Cut:
    """Along `dim` (from the end: -2 are a matrix's rows) lie `pieces`, given by their relative sizes. Each is divided into
    `count` shares of which share `index` is kept, but the last `num_whole` pieces stay whole. A `padded` cut need not divide:
    its last shares are smaller."""

    dim: int
    index: int
    count: int
    pieces: tuple[int, ...] = (1,)
    num_whole: int = 0
    padded: bool = False

    def ranges(self, size: int) -> list[slice]:
        """Of `size` rows or columns those that are kept."""
        unit = size // sum(self.pieces)
        ends = list(itertools.accumulate(piece * unit for piece in self.pieces))
        num_divided = len(self.pieces) - self.num_whole
        divided = [self._share(start, end) for start, end in zip([0, *ends], ends[:num_divided], strict=False)]
        return divided + [slice(start, end) for start, end in itertools.pairwise(ends[num_divided - 1 :])]

    def divides(self, size: int) -> bool:
        if self.padded:
            return True
        unit, rest = divmod(size, sum(self.pieces))
        num_divided = len(self.pieces) - self.num_whole
        return rest == 0 and all(piece * unit % self.count == 0 for piece in self.pieces[:num_divided])

    def local_shape(self, shape: Sequence[int]) -> list[int]:
        local = list(shape)
        local[self.dim] = sum(part.stop - part.start for part in self.ranges(shape[self.dim]))
        return local

    def _share(self, start: int, end: int) -> slice:
        share = -(-(end - start) // self.count) if self.padded else (end - start) // self.count
        return slice(min(start + self.index * share, end), min(start + (self.index + 1) * share, end))

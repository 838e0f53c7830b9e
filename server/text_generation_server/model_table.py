"""The table of model types: how each is served, and what was checked. Read from the file that the sweep over all of them wrote.

In: models.csv beside this file. Out: rows, and the Markdown that `text-generation-server models` prints.
"""

import csv
import dataclasses
from importlib import resources

HEADER = ("type", "kind", "path", "paged", "shards", "quantized", "note")


@dataclasses.dataclass(frozen=True, slots=True)
class ModelRow:
    model_type: str  # as in config.json
    kind: str  # decoder, or encoder-decoder
    path: str  # native, adapter, fallback, recompute, seq2seq; empty: not served
    paged: bool  # keys and values in blocks, prompts in chunks, prefixes shared
    shards: str  # the numbers of shards that were checked: "1" or "1, 2"
    quantized: bool  # --quantize bitsandbytes-nf4 makes its matrices smaller
    note: str = ""  # why it is not served, say

    def cells(self) -> list[str]:
        words = {True: "yes", False: "no"}
        if not self.path:
            return [self.model_type, self.kind, "—", "", "", "", self.note]
        return [self.model_type, self.kind, self.path, words[self.paged], self.shards, words[self.quantized], self.note]


@dataclasses.dataclass(frozen=True, slots=True)
class ModelTable:
    checked: str  # when, and with which libraries
    rows: list[ModelRow]

    @classmethod
    def read(cls) -> "ModelTable":
        checked, _, *lines = resources.files(__package__).joinpath("models.csv").read_text().splitlines()
        rows = [
            ModelRow(model_type, kind, path, paged == "yes", shards, quantized == "yes", note)
            for model_type, kind, path, paged, shards, quantized, note in csv.reader(lines)
        ]
        return cls(checked.removeprefix("# "), rows)

    @property
    def served(self) -> list[ModelRow]:
        return [row for row in self.rows if row.path]

    @property
    def paged(self) -> list[ModelRow]:
        return [row for row in self.rows if row.paged]

    @property
    def split(self) -> list[ModelRow]:
        return [row for row in self.served if row.shards != "1"]

    def markdown(self) -> str:
        counts = (
            f"{len(self.served)} model types are served, {len(self.paged)} of them with paged keys and values, "
            f"{len(self.split)} also over several shards."
        )
        table = [HEADER, ["---"] * len(HEADER), *(row.cells() for row in self.rows)]
        return "\n".join([counts, f"Checked {self.checked}.", "", *(f"| {' | '.join(cells)} |" for cells in table)])

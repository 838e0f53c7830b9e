"""EndlessModel: a model folder of which no token ends a text, so that all answers of all servers are equally long.

In: a model folder. Out: a folder of links to its files, with configs of its own, which every server can read.
"""

import json
from pathlib import Path
from typing import Any

from generated_model import SPECIAL_TOKENS

NO_END = {"config.json": {"eos_token_id": None}, "generation_config.json": {"eos_token_id": None}}
SPECIAL_NAMES = ("unk_token", "bos_token", "eos_token", "pad_token")
# Of generated models, which have none: transformers would take a tokenizer by the model's type, and split texts in its way.
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
    **dict(zip(SPECIAL_NAMES, SPECIAL_TOKENS, strict=True)),
}


def endless_folder(source: Path, folder: Path) -> Path:
    """`folder`, made new."""
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.name not in NO_END:
            (folder / path.name).symlink_to(path.resolve())
    for name, changes in NO_END.items():
        _write(folder / name, _read(source / name) | changes)
    if not (folder / "tokenizer_config.json").exists():
        _write(folder / "tokenizer_config.json", TOKENIZER_CONFIG)
    return folder


def read_through(folder: Path) -> None:
    """Every byte, once: from then on the files are in the page cache, for the first server as for the last."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2))

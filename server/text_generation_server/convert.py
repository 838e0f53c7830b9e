"""PyTorch's `.bin` checkpoints become safetensors, once, in the same folder.

In: a folder with `.bin` files and perhaps their index. Out: `model*.safetensors` beside them, and an index where there
are several. One file is in memory at a time. Knows nothing of the hub, and of models only that heads may be tied.
"""

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tqdm import tqdm

from text_generation_server.errors import ModelError

BIN_INDEX = "pytorch_model.bin.index.json"
INDEX = "model.safetensors.index.json"
NO_WEIGHTS = ("arguments", "args", "training")  # what training programs leave beside the weights
TIED_HEAD = "lm_head.weight"  # of two names for one tensor, models expect the embedding's


def convert(folder: Path, unfinished: Path) -> None:
    """Everything is written into the folder `unfinished` (on the same disk) and moves out when all of it is whole.

    As long as `unfinished` is there, killed conversions' remains included, the conversion is not done.

    Raises:
        ModelError: there is nothing to convert, or a file cannot be read or written.
    """
    sources = _bin_files(folder)
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        weight_map: dict[str, str] = {}
        for source in tqdm(sources, desc="converting .bin to safetensors", unit="file"):
            target = source.with_suffix(".safetensors").name.removeprefix("pytorch_")
            weight_map |= dict.fromkeys(_convert_file(source, unfinished / target), target)
        if len(sources) > 1:
            (unfinished / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}, indent=2))
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise ModelError(f"cannot convert the .bin weights in {folder}: {error}") from error
    except BaseException:  # Ctrl-C too: half files are of no use and may be large
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    for file in unfinished.iterdir():
        file.rename(folder / file.name)
    unfinished.rmdir()


def _bin_files(folder: Path) -> list[Path]:
    """Those that the index names, else all that look like weights."""
    index = folder / BIN_INDEX
    if index.is_file():
        files = [folder / name for name in _names_in(index)]
    else:
        files = [file for file in sorted(folder.glob("*.bin")) if not any(word in file.name for word in NO_WEIGHTS)]
    if not files:
        raise ModelError(f"{folder} holds no weights: neither .safetensors nor .bin files")
    if missing := [file.name for file in files if not file.is_file()]:
        raise ModelError(f"{folder} lacks {len(missing)} of the files that its index names, such as {missing[0]}")
    return files


def _names_in(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} is no index of weight files: {error}") from error


def _convert_file(source: Path, target: Path) -> list[str]:
    """The names of the tensors written."""
    try:
        # Files from before PyTorch 1.6 are no zip archives and cannot be mapped.
        content = torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError) as error:
        raise ModelError(f"{source} cannot be read: cut short, or no file of PyTorch weights") from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ModelError(f"{source} holds something else than named tensors")
    tensors = _without_duplicates(content)
    save_file(tensors, target, metadata={"format": "pt"})
    return list(tensors)


def _without_duplicates(content: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each tensor once and in memory of its own, as safetensors demands."""
    kept: dict[tuple[object, ...], str] = {}
    for name in sorted(content, key=lambda name: (name == TIED_HEAD, name)):
        tensor = content[name]
        memory = (tensor.untyped_storage().data_ptr(), tensor.storage_offset())
        kept.setdefault((*memory, tensor.shape, tensor.stride(), tensor.dtype), name)
    return {name: _own(content[name]) for name in kept.values()}


def _own(tensor: torch.Tensor) -> torch.Tensor:
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)

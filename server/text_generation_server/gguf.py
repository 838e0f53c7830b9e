"""A GGUF file becomes a model folder, once: config.json, safetensors and tokenizer files as transformers saves them.

In: a .gguf file. Out: the folder, beside the file or, where nothing can be written there, in the hub library's cache. What
GGUF means is the business of transformers' reader. Every tensor is stored in the smallest type that loses nothing of what
that reader gives: the folder's answers are the file's, whatever --dtype will be. Knows nothing of the hub.
"""

import hashlib
import importlib.util
import json
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import constants

from text_generation_server.errors import ModelError
from text_generation_server.exclusive import exclusively

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

FOLDER_SUFFIX = ".safetensors-folder"
CACHE = "converted-gguf"
STAMP = "gguf_source.json"  # in the folder, the last file to be written: what it was made of
PACKAGES = ("gguf", "accelerate")  # what transformers reads GGUF with
MAX_FILE_SIZE = "5GB"


def sole_file(folder: str, names: list[str]) -> str:
    """
    Raises:
        ModelError: there are several GGUF files in `folder` to choose from.
    """
    if len(names) > 1:
        raise ModelError(f"{folder} holds several GGUF files, name one, as in {folder}/{names[0]}: {', '.join(names)}")
    return names[0]


def folder_of(file: Path) -> Path:
    """The folder that `file` has become, now or before.

    Raises:
        ModelError: it is no GGUF file of a model that transformers knows, or there is no place for the folder.
    """
    if file.suffix != ".gguf":
        raise ModelError(f"{file} is a file: give the folder that it is in, or a .gguf file")
    beside = file.with_name(file.name + FOLDER_SUFFIX)
    if _is_made_of(file, beside):  # somebody else may have made it, where we cannot write
        return beside
    folder = beside if os.access(file.parent, os.W_OK) else _in_cache(file)
    with exclusively(file):
        if not _is_made_of(file, folder):
            _convert(file, folder)
    return folder


def _in_cache(file: Path) -> Path:
    name = hashlib.sha256(os.fsencode(file.resolve())).hexdigest()[:16]
    return Path(constants.HF_HUB_CACHE) / CACHE / f"{name}-{file.name}{FOLDER_SUFFIX}"


def _is_made_of(file: Path, folder: Path) -> bool:
    try:
        return json.loads((folder / STAMP).read_text()) == _stamp(file)
    except (OSError, ValueError):
        return False


def _stamp(file: Path) -> dict[str, int]:
    status = file.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _convert(file: Path, folder: Path) -> None:
    """Under its final name the folder is whole."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ModelError(f"{file} cannot be read without the package {missing[0]}: pip install {' '.join(PACKAGES)}")
    logger.info("converting a GGUF file once file=%s folder=%s", file, folder)
    unfinished = folder.with_name(folder.name + ".unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        _write(file, unfinished)
        (unfinished / STAMP).write_text(json.dumps(_stamp(file)))
        shutil.rmtree(folder, ignore_errors=True)  # of a file that had the name before
        unfinished.rename(folder)
    except Exception as error:  # what a reader raises for a file that is broken or strange has no common root
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(f"{file} cannot be converted to safetensors in {folder.parent}: {reason}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, GgufConfig

    logging.getLogger("transformers").setLevel(logging.ERROR)
    source: dict[str, Any] = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    config = AutoConfig.from_pretrained(**source)
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    plain = GgufConfig(dequantize=True)  # else, with some packages installed, the blocks stay as they are in the file
    model = auto_class.from_pretrained(**source, config=config, dtype=torch.float32, quantization_config=plain)
    for parameter in model.parameters():
        parameter.data = _narrowest(parameter.data)
    model.save_pretrained(folder, max_shard_size=MAX_FILE_SIZE)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def _narrowest(tensor: "torch.Tensor") -> "torch.Tensor":
    """Files of 16 bits give tensors of 16 bits; what was quantized seldom fits, because scale times step has more digits."""
    import torch

    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal((narrow := tensor.to(dtype)).to(tensor.dtype), tensor):
            return narrow
    return tensor

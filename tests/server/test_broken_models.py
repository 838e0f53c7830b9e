"""Folders with one thing wrong: each is refused in one line that says what, for BLOOM and for a model of transformers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from random_models import save_random_model
from text_generation_server.errors import ShardError
from text_generation_server.models import ModelFolder
from text_generation_server.parallel import Parallel
from tiny_models import save_random_bloom

INDEX = "model.safetensors.index.json"


def sharded(folder: Path) -> Path:
    """The same model again, in several files and an index."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert (folder / INDEX).is_file()
    return folder


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    bloom, llama = tmp_path_factory.mktemp("bloom"), tmp_path_factory.mktemp("llama")
    return {"bloom": sharded(save_random_bloom(bloom, num_layers=2)), "llama": sharded(save_random_model(llama, "llama"))}


@pytest.fixture(params=["bloom", "llama"])
def folder(request: pytest.FixtureRequest, wholes: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(wholes[request.param], tmp_path / "model"))


def test_the_whole_folder_is_served(folder: Path) -> None:
    load(folder)


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def change_tensor(folder: Path, change: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
    """Of the first norm that the index names."""
    index = json.loads((folder / INDEX).read_text())
    name = next(name for name in index["weight_map"] if "layernorm" in name and name.endswith("weight"))
    file = folder / index["weight_map"][name]
    tensors = load_file(file)
    if (changed := change(tensors.pop(name))) is not None:
        tensors[name] = changed
    save_file(tensors, file, metadata={"format": "pt"})


def one_file(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


# What is done to the folder, and what the line says.
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "cannot read"),
    "config no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is no JSON"),
    "unknown type": (lambda folder: change_config(folder, model_type="unheard-of"), "model type 'unheard-of'"),
    "encoder": (lambda folder: change_config(folder, model_type="bert"), "encoder"),
    "index no JSON": (lambda folder: (folder / INDEX).write_text('{"weight_map": {'), f"{INDEX} is no index of weight files"),
    "index of nothing": (lambda folder: (folder / INDEX).write_text("[]"), f"{INDEX} is no index of weight files"),
    "file missing": (lambda folder: one_file(folder).unlink(), "lacks 1 of the files that its index names, such as model-0"),
    "cut short": (lambda folder: cut_short(one_file(folder)), "was it cut short?"),
    "empty file": (lambda folder: one_file(folder).write_bytes(b""), "was it cut short?"),
    "other shape": (lambda folder: change_tensor(folder, lambda tensor: tensor[1:].clone()), "shape"),
    "tensor missing": (lambda folder: change_tensor(folder, lambda tensor: None), "layernorm.weight"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_said_in_one_line(folder: Path, case: str) -> None:
    damage, expected = BROKEN[case]
    damage(folder)
    with pytest.raises(ShardError) as caught:
        load(folder)
    message = str(caught.value)
    assert expected in message and "\n" not in message and len(message) < 3000, message


def load(folder: Path) -> None:
    ModelFolder.read(folder).load(torch.device("cpu"), torch.float32, Parallel(), None)

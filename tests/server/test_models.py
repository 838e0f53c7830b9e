"""What a model folder says about itself, and the one line that a folder gets that cannot be served."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from text_generation_server.errors import ModelError
from text_generation_server.models import ModelFolder
from text_generation_server.parallel import Parallel


def folder_with(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        ModelFolder.read(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone") == f"there is no model folder {tmp_path / 'gone'}"


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"cannot read {tmp_path / 'config.json'}: No such file or directory"


@pytest.mark.parametrize("text", ["", "{", "\udcff".encode(errors="surrogateescape")])
def test_a_config_that_is_no_json_is_refused(tmp_path: Path, text: str | bytes) -> None:
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert "config.json is no JSON" in refusal(tmp_path)


def test_a_config_that_is_a_list_is_refused(tmp_path: Path) -> None:
    assert "config.json is no JSON object" in refusal(folder_with(tmp_path, config=[]))


@pytest.mark.parametrize("config", [{}, {"model_type": "unheard-of"}, {"model_type": None}], ids=str)
def test_a_model_type_that_is_not_served_is_named_with_those_that_are(tmp_path: Path, config: dict[str, Any]) -> None:
    message = refusal(folder_with(tmp_path, config=config))
    assert message.startswith(f"{tmp_path}: model type {config.get('model_type', '')!r} is not served")
    assert "served are: bloom, " in message and " llama, " in message


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({}, None, ()),
        ({"eos_token_id": 2}, None, (2,)),
        ({"eos_token_id": 2}, {}, (2,)),
        ({"eos_token_id": 2}, {"eos_token_id": [3, 4]}, (3, 4)),
        ({"eos_token_id": 0}, None, (0,)),
    ],
)
def test_the_generation_config_names_the_end_before_the_config(
    tmp_path: Path, config: dict[str, Any], generation: dict[str, Any] | None, expected: tuple[int, ...]
) -> None:
    files = {"config": {"model_type": "bloom"} | config} | ({} if generation is None else {"generation_config": generation})
    assert ModelFolder.read(folder_with(tmp_path, **files)).eos_token_ids == expected


def test_a_config_that_lacks_a_size_is_refused(tmp_path: Path) -> None:
    folder = ModelFolder.read(folder_with(tmp_path, config={"model_type": "bloom", "vocab_size": 300}))
    with pytest.raises(ModelError, match="lacks"):
        folder.load(torch.device("cpu"), torch.float32, Parallel(), None)


def test_a_random_bloom_loads_with_every_tensor_used(random_bloom: Path) -> None:
    model, bytes_read = ModelFolder.read(random_bloom).load(torch.device("cpu"), torch.float32, Parallel(), None)
    stored = load_file(random_bloom / "model.safetensors")
    assert len(model.layers) == 3
    assert bytes_read == sum(tensor.nbytes for tensor in stored.values())

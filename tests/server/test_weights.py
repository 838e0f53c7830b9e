"""Slices of safetensors are the tensor's parts; whatever is wrong with a folder is said in one line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from text_generation_server.errors import ModelError
from text_generation_server.weights import Weights

CPU = torch.device("cpu")
INDEX = "model.safetensors.index.json"
MATRIX = torch.arange(48.0).view(8, 6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"h.matrix": MATRIX, "h.vector": torch.arange(8.0)}, tmp_path / "model.safetensors")
    return tmp_path


def opened(folder: Path, prefix: str = "") -> Weights:
    return Weights(folder, CPU, torch.float32, prefix)


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        opened(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("rows", "columns"),
    [(None, None), (slice(2, 5), None), (None, slice(1, 4)), (slice(4, 8), slice(3, 6)), (slice(0, 8), slice(0, 6))],
)
def test_a_slice_is_the_part_of_the_tensor(folder: Path, rows: slice | None, columns: slice | None) -> None:
    part = opened(folder).load("h.matrix", (8, 6), rows=rows, columns=columns)
    assert torch.equal(part, MATRIX[rows or slice(None), columns or slice(None)])
    assert part.is_contiguous()


def test_a_mapped_tensor_is_the_files(folder: Path) -> None:
    weights = opened(folder)
    assert torch.equal(weights.map("h.matrix", (8, 6), rows=slice(2, 4)), MATRIX[2:4])
    assert weights.bytes_read == 0


def test_bytes_that_are_read_are_counted(folder: Path) -> None:
    weights = opened(folder)
    weights.load("h.matrix", (8, 6), rows=slice(0, 4))
    weights.load("h.vector", (8,))
    assert weights.bytes_read == (4 * 6 + 8) * 4


def test_tensors_come_in_the_dtype_asked_for(folder: Path) -> None:
    loaded = Weights(folder, CPU, torch.bfloat16).load("h.vector", (8,))
    assert loaded.dtype == torch.bfloat16


def test_matrices_come_in_a_type_of_their_own_if_one_is_given(folder: Path) -> None:
    weights = Weights(folder, CPU, torch.float32, matrix_dtype=torch.bfloat16)
    assert weights.load_matrix("h.matrix", (8, 6)).dtype == torch.bfloat16
    assert weights.load("h.vector", (8,)).dtype == torch.float32
    assert opened(folder).load_matrix("h.matrix", (8, 6)).dtype == torch.float32


def test_names_are_the_same_with_and_without_the_prefix(folder: Path, tmp_path: Path) -> None:
    assert opened(folder, "h.").load("matrix", (8, 6)).shape == (8, 6)
    assert opened(folder, "transformer.").load("h.matrix", (8, 6)).shape == (8, 6)
    with pytest.raises(ModelError):
        opened(folder).load("matrix", (8, 6))


def test_a_wrong_shape_is_named_with_both_shapes(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"h\.matrix in model\.safetensors has shape \[8, 6\], expected \[6, 8\]"):
        opened(folder).load("h.matrix", (6, 8))


def test_a_missing_tensor_is_named(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"the checkpoint has no tensor h\.other"):
        opened(folder).load("h.other", (1,))


def test_a_tensor_that_nothing_asked_for_is_named(folder: Path) -> None:
    weights = opened(folder)
    weights.load("h.matrix", (8, 6))
    with pytest.raises(ModelError, match=r"1 tensors that the model does not know, such as h\.vector"):
        weights.check_all_used()
    weights.ignore(["h.vector", "never there"])
    weights.check_all_used()


def test_an_index_joins_several_files(folder: Path) -> None:
    save_file({"other": torch.ones(3)}, folder / "second.safetensors")
    save_file({"stray": torch.ones(3)}, folder / "stray.safetensors")
    files = {"h.matrix": "model.safetensors", "h.vector": "model.safetensors", "other": "second.safetensors"}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    weights = opened(folder)
    assert torch.equal(weights.load("other", (3,)), torch.ones(3))
    with pytest.raises(ModelError, match="no tensor stray"):
        weights.load("stray", (3,))


def test_a_file_that_the_index_names_but_is_not_there_is_named(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "gone.safetensors"}}))
    assert "lacks 1 of the files that its index names, such as gone.safetensors" in refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '"weight_map"', '{"weight_map": ["a"]}', '{"weight_map": {"a": 3}}'])
def test_a_corrupt_index_is_refused(folder: Path, text: str) -> None:
    (folder / INDEX).write_text(text)
    assert f"{INDEX} is no index of weight files" in refusal(folder)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    assert "holds no .safetensors weights" in refusal(tmp_path)


@pytest.mark.parametrize("size", [0, 4, 60, -1])
def test_a_file_cut_short_is_refused_at_once(folder: Path, size: int) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:size])
    assert f"cannot read {file}" in (message := refusal(folder))
    assert message.endswith("was it cut short?")

"""A GGUF file becomes a folder: the same model, whole or not at all, and once."""

import os
import threading
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from text_generation_server import gguf
from text_generation_server.download import download_weights
from text_generation_server.errors import ModelError
from tiny_gguf import TEMPLATE, save_gguf


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def folder(file: Path) -> Path:
    return gguf.folder_of(file)


def test_the_folder_holds_the_model_that_transformers_reads_from_the_file(file: Path, folder: Path) -> None:
    expected = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).state_dict()
    found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_the_folder_holds_what_the_router_reads(file: Path, folder: Path) -> None:
    expected = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    found = AutoTokenizer.from_pretrained(folder)
    assert found("hello <s>").input_ids == expected("hello <s>").input_ids
    assert found.chat_template == TEMPLATE and found.special_tokens_map == expected.special_tokens_map
    assert {path.name for path in folder.iterdir()} >= {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}


@pytest.mark.parametrize(("kind", "dtype"), [(Kind.F16, torch.float16), (Kind.BF16, torch.bfloat16), (Kind.F32, torch.float32)])
def test_files_of_plain_numbers_keep_their_type(tmp_path: Path, kind: Kind, dtype: torch.dtype) -> None:
    folder = gguf.folder_of(save_gguf(tmp_path / "tiny.gguf", kind))
    assert load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].dtype == dtype


def test_the_folder_is_made_once_and_again_for_another_file(tmp_path: Path) -> None:
    file = save_gguf(tmp_path / "tiny.gguf")
    first = gguf.folder_of(file)
    made_at = (first / "model.safetensors").stat().st_mtime_ns
    assert gguf.folder_of(file) == first and (first / "model.safetensors").stat().st_mtime_ns == made_at
    before = load_file(first / "model.safetensors")
    save_gguf(file, seed=1)
    assert gguf.folder_of(file) == first
    after = load_file(first / "model.safetensors")
    assert not torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])


def test_two_that_start_together_convert_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = save_gguf(tmp_path / "tiny.gguf")
    threads = [threading.Thread(target=gguf.folder_of, args=(file,)) for _ in range(2)]
    with caplog.at_level("INFO"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum("converting a GGUF file" in message for message in caplog.messages) == 1
    assert {path.name for path in tmp_path.iterdir()} == {file.name, file.name + gguf.FOLDER_SUFFIX}


def test_a_place_that_cannot_be_written_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save_gguf(tmp_path / "tiny.gguf")
    cache = tmp_path / "cache"
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # who runs the tests may write everywhere
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    folder = gguf.folder_of(file)
    assert folder.is_relative_to(cache) and (folder / "model.safetensors").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.gguf", "cache"}


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no such thing" * 100], ids=["empty", "cut", "other"])
def test_what_is_no_gguf_is_refused_in_one_line_and_leaves_nothing(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(content)
    assert "tiny.gguf cannot be converted" in refusal(file)
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    file = save_gguf(tmp_path / "tiny.gguf")
    file.write_bytes(file.read_bytes()[:-1000])
    assert "tiny.gguf cannot be converted" in refusal(file)


def test_a_missing_package_is_named(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "tiny.gguf"
    link.symlink_to(file)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "without the package gguf: pip install gguf accelerate" in refusal(link)


def test_a_folder_with_one_gguf_file_is_that_file(file: Path, folder: Path) -> None:
    assert download_weights(str(file.parent), None) == folder


def test_a_folder_with_several_asks_for_one(tmp_path: Path) -> None:
    for name in ("b.gguf", "a.gguf"):
        (tmp_path / name).touch()
    assert f"name one, as in {tmp_path}/a.gguf: a.gguf, b.gguf" in refusal(tmp_path)


def test_another_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert "give the folder that it is in, or a .gguf file" in refusal(tmp_path / "model.safetensors")


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        download_weights(str(path), None)
    assert "\n" not in str(caught.value)
    return str(caught.value)

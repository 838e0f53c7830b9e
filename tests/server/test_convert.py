"""`.bin` checkpoints become safetensors: equal tensors, tied ones once, and whole files or none."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from random_models import save_random_model
from text_generation_server.convert import convert
from text_generation_server.errors import ModelError

INDEX = "model.safetensors.index.json"


def converted(folder: Path) -> set[str]:
    convert(folder, folder / ".converting")
    return {path.name for path in folder.iterdir() if path.suffix != ".bin"}


def test_one_file_becomes_one_file_with_equal_tensors(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5), "c": torch.randn(2, 2).to(torch.bfloat16)}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert converted(tmp_path) == {"model.safetensors"}
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_several_files_become_several_and_an_index(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.zeros(2)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    torch.save({"c": torch.zeros(2)}, tmp_path / "training_args.bin")
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    assert converted(tmp_path) == {first, second, INDEX}
    assert json.loads((tmp_path / INDEX).read_text())["weight_map"] == {"a": first, "b": second}


def test_an_index_says_which_files_count(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    torch.save({"b": torch.ones(2)}, tmp_path / "optimizer.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "pytorch_model.bin"}}))
    assert "optimizer.safetensors" not in converted(tmp_path)


def test_a_tied_head_is_stored_once_under_the_embeddings_name(tmp_path: Path) -> None:
    embedding = torch.randn(6, 2)
    torch.save({"lm_head.weight": embedding, "wte.weight": embedding}, tmp_path / "pytorch_model.bin")
    converted(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == {"wte.weight"}


@pytest.mark.parametrize(("model_type", "auto_class"), [("t5", AutoModelForSeq2SeqLM), ("gpt2", AutoModelForCausalLM)])
def test_tied_tensors_of_any_name_are_all_there_after_loading(tmp_path: Path, model_type: str, auto_class: Any) -> None:
    """T5 has one tensor under four names; which of them stays is enough for transformers' loader."""
    save_random_model(tmp_path, model_type, seq2seq=model_type == "t5", tie_word_embeddings=True)
    model = auto_class.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    converted(tmp_path)
    found, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in found.state_dict().items())


def test_parts_of_one_tensor_and_transposed_ones_get_memory_of_their_own(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(4, 3)
    torch.save({"top": whole[:2], "bottom": whole[2:], "turned": whole.T}, tmp_path / "pytorch_model.bin")
    converted(tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert torch.equal(found["top"], whole[:2]) and torch.equal(found["bottom"], whole[2:])
    assert torch.equal(found["turned"], whole.T)


def test_files_of_the_time_before_zip_are_read(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    converted(tmp_path)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["a"], torch.ones(2))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_short_leaves_nothing_half_done(tmp_path: Path, zipped: bool) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    broken = tmp_path / "pytorch_model-00002-of-00002.bin"
    torch.save({"b": torch.ones(5000)}, broken, _use_new_zipfile_serialization=zipped)
    broken.write_bytes(broken.read_bytes()[:9000])
    with pytest.raises(ModelError, match=r"00002\.bin cannot be read"):
        converted(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".bin"}


def test_what_a_killed_conversion_left_is_done_again(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    (tmp_path / ".converting").mkdir()
    (tmp_path / ".converting" / "model.safetensors").write_bytes(b"half")
    assert converted(tmp_path) == {"model.safetensors"}
    assert "a" in load_file(tmp_path / "model.safetensors")


def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return eval, ("1/0",)

    torch.save({"a": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be read"):
        converted(tmp_path)


def test_a_file_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"step": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="something else than named tensors"):
        converted(tmp_path)


def test_a_file_that_the_index_names_but_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "gone.bin"}}))
    with pytest.raises(ModelError, match=r"gone\.bin"):
        converted(tmp_path)

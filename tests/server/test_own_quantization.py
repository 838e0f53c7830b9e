"""Checkpoints that were quantized before they were saved: served as transformers reads them, or refused in one line."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import Reference, compare
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from random_models import save_random_model
from runner_steps import generate, make_runner
from text_generation_server.errors import ConfigurationError, ModelError
from text_generation_server.layers.packed import PackedLinear
from text_generation_server.models import ModelFolder
from text_generation_server.models.own_quantization import size_in_bytes
from tiny_models import save_byte_tokenizer, save_random_bloom

PROMPT = [1, 5, 77, 42, 9, 60, 200, 31]
KINDS: dict[str, dict[str, Any]] = {
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}
SAVERS = {
    "llama": lambda folder: save_random_model(folder, "llama", hidden_size=64, intermediate_size=128, head_dim=16),
    "bloom": save_random_bloom,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    return {
        (model_type, kind): save_quantized(model_type, kind, tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp(kind))
        for model_type, kind in [("llama", "int8"), ("llama", "nf4"), ("bloom", "nf4")]
    }


def save_quantized(model_type: str, kind: str, plain: Path, folder: Path) -> Path:
    quantization = BitsAndBytesConfig(**KINDS[kind])
    model = AutoModelForCausalLM.from_pretrained(SAVERS[model_type](plain), quantization_config=quantization)
    model.save_pretrained(folder)
    save_byte_tokenizer(folder)
    return folder


@pytest.mark.parametrize(("model_type", "kind"), [("llama", "int8"), ("llama", "nf4"), ("bloom", "nf4")])
def test_answers_are_those_of_transformers(folders: dict[tuple[str, str], Path], model_type: str, kind: str) -> None:
    folder = folders[model_type, kind]
    runner = make_runner(folder)
    compare(Reference(folder).generate(PROMPT, 10), *generate(runner, PROMPT, 10))
    kinds = {type(module).__name__ for module in runner.model._trunk.modules()}
    assert kinds & {"Linear8bitLt", "Linear4bit"} and "LinearInPlace" not in kinds


def test_fp8_is_served_where_nothing_computes_in_it(tmp_path: Path) -> None:
    """transformers gives the matrices back in plain numbers there, and then the linears are ours."""
    folder = save_random_model(tmp_path, "llama", hidden_size=128, intermediate_size=128, head_dim=32, num_key_value_heads=4)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        scale = tensors[name].abs().max() / torch.finfo(torch.float8_e4m3fn).max
        tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale.reshape(1, 1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    say_quantized(folder, {"quant_method": "fp8", "weight_block_size": [128, 128]})
    compare(Reference(folder).generate(PROMPT, 10), *generate(make_runner(folder), PROMPT, 10))


def test_what_the_whole_says_of_its_bits_counts_for_its_text_part(tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 128, "intermediate_size_mlp": 128}
    folder = save_random_model(tmp_path, "llama4", text_config={**sizes, "head_dim": 32, "num_key_value_heads": 4})
    tensors = load_file(folder / "model.safetensors")
    halved = [name for name in tensors if name.endswith(("self_attn.q_proj.weight", "self_attn.o_proj.weight"))]
    assert halved
    for name in halved:
        scale = tensors[name].abs().max() / torch.finfo(torch.float8_e4m3fn).max
        tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale.reshape(1, 1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    others = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight") and name not in halved]
    say_quantized(folder, {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": others})
    compare(Reference(folder).generate(PROMPT, 10), *generate(make_runner(folder), PROMPT, 10))


@pytest.mark.parametrize("model_type", ["llama", "bloom"])
def test_a_configuration_that_says_null_is_of_plain_numbers(tmp_path: Path, model_type: str) -> None:
    folder = SAVERS[model_type](tmp_path)
    say_quantized(folder, None)
    ModelFolder.read(folder).check_world_size(2)
    assert make_runner(folder).folder.way.is_native


def test_they_take_the_room_of_their_bits(folders: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    plain = make_runner(SAVERS["llama"](tmp_path)).model.weight_bytes
    int8, nf4 = (make_runner(folders["llama", kind]).model.weight_bytes for kind in ("int8", "nf4"))
    assert nf4 < int8 < 0.6 * plain


def test_neither_the_embedding_nor_what_is_counted_elsewhere_counts_as_theirs() -> None:
    ours = PackedLinear(torch.randn(16, 4), torch.randn(16))
    theirs = torch.nn.Linear(16, 2, bias=False)
    assert size_in_bytes(torch.nn.Sequential(torch.nn.Embedding(8, 4), ours, theirs)) == theirs.weight.nbytes


def test_they_are_not_quantized_once_more(folders: dict[tuple[str, str], Path]) -> None:
    with pytest.raises(ConfigurationError, match=r"quantized already \(bitsandbytes\): leave out --quantize bitsandbytes-nf4"):
        make_runner(folders["llama", "int8"], quantize="bitsandbytes-nf4")


@pytest.mark.parametrize("model_type", ["llama", "bloom"])
def test_they_run_on_one_shard(folders: dict[tuple[str, str], Path], model_type: str) -> None:
    with pytest.raises(ConfigurationError, match="quantized already, and runs on one shard only: --num-shard 1"):
        ModelFolder.read(folders[model_type, "nf4"]).check_world_size(2)


@pytest.mark.parametrize(
    ("method", "settings", "package"),
    [
        ("gptq", {"bits": 4, "group_size": 32}, "optimum"),
        ("awq", {"bits": 4, "group_size": 32}, "gptqmodel"),
        ("compressed-tensors", {"format": "dense"}, "compressed-tensors"),
    ],
)
def test_a_package_that_is_missing_is_named(tmp_path: Path, method: str, settings: dict[str, Any], package: str) -> None:
    if importlib.util.find_spec(package.replace("-", "_")):
        pytest.skip(f"{package} is installed")
    folder = say_quantized(save_random_model(tmp_path, "llama"), {"quant_method": method} | settings)
    message = refusal(folder)
    assert f"is quantized with {method} and cannot be read" in message and f"pip install {package}" in message


def test_settings_that_name_no_method_are_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(say_quantized(save_random_model(tmp_path, "llama"), {}))


def say_quantized(folder: Path, settings: dict[str, Any]) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        make_runner(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)

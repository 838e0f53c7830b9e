"""Our Llama, Mistral and Qwen2 against transformers' on small random checkpoints: what a configuration may say, on one rank
and on two."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import Reference, compare
from safetensors.torch import load_file, save_file

from random_models import save_random_model
from runner_steps import all_logits, generate, make_runner
from sweep import serve_and_compare
from text_generation_server.errors import ConfigurationError, ModelError
from text_generation_server.models import ModelFolder
from text_generation_server.models.registry import Way, find_way
from tiny_models import save_random_bloom

PROMPT = [1, *range(40, 60), 9, 9, 250, 17]
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
TIED = {"tie_word_embeddings": True}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"num_key_value_heads": 4}),
        ("llama", {"num_key_value_heads": 1, "head_dim": 16}),
        ("llama", {"rms_norm_eps": 0.1}),
        ("llama", {"rope_parameters": LLAMA_3}),
        ("llama", {"rope_parameters": LINEAR}),
        ("mistral", {"sliding_window": 8}),
        ("mistral", {"sliding_window": None, "head_dim": 16}),
        ("qwen2", {}),
        ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    ],
    ids=str,
)
def test_logits_and_greedy_tokens_are_those_of_transformers(
    tmp_path: Path, model_type: str, options: dict[str, Any]
) -> None:
    folder = save_random_model(tmp_path, model_type, **options)
    runner = make_runner(folder)
    assert runner.folder.way is Way.LLAMA
    with torch.inference_mode():
        expected = Reference(folder).model(torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(all_logits(runner, PROMPT), expected, rtol=1e-4, atol=1e-3)
    compare(Reference(folder).generate(PROMPT, 12), *generate(runner, PROMPT, 12, chunk=7))


def test_llama_3s_positions_are_stretched_from_the_length_that_there_is_where_no_other_is_said(tmp_path: Path) -> None:
    folder = save_random_model(tmp_path, "llama", max_position_embeddings=64)
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    stretch = {name: value for name, value in LLAMA_3.items() if name != "original_max_position_embeddings"}
    config |= {"rope_theta": 500.0, "rope_scaling": stretch}
    (folder / "config.json").write_text(json.dumps(config))
    compare(Reference(folder).generate(PROMPT, 12), *generate(make_runner(folder), PROMPT, 12))


@pytest.mark.parametrize("model_type", ["qwen2", "bloom"])
def test_a_head_of_its_own_counts_though_the_configuration_ties_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, model_type: str
) -> None:
    """Somebody has trained it, and kept the configuration of before. transformers does so too."""
    save = save_random_bloom if model_type == "bloom" else lambda folder: save_random_model(folder, model_type, **TIED)
    folder = save(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    [embedding] = [tensors[name] for name in tensors if name.endswith(("embed_tokens.weight", "word_embeddings.weight"))]
    tensors["lm_head.weight"] = embedding + torch.randn(embedding.shape, generator=torch.Generator().manual_seed(2))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    runner = make_runner(folder)
    with torch.inference_mode():
        expected = Reference(folder).model(torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(all_logits(runner, PROMPT), expected, rtol=1e-4, atol=1e-3)
    assert "the head is not the embedding" in caplog.text


def test_older_files_say_the_same_in_other_words(tmp_path: Path) -> None:
    folder = save_random_model(tmp_path, "llama", rope_parameters=LLAMA_3)
    expected = all_logits(make_runner(folder), PROMPT)
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = {"type": rope.pop("rope_type")} | rope
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, folder / "model.safetensors")
    assert ModelFolder.read(folder).way is Way.LLAMA
    assert torch.equal(all_logits(make_runner(folder), PROMPT), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"model_type": "qwen2", "use_sliding_window": True},
        {"model_type": "mistral", "layer_types": ["sliding_attention", "full_attention"]},
    ],
    ids=str,
)
def test_what_our_own_code_has_not_the_adapter_serves(options: dict[str, Any]) -> None:
    assert find_way({"model_type": "llama"} | options) is Way.ADAPTER


@pytest.mark.parametrize("quantize", ["bitsandbytes", "bitsandbytes-nf4", "int8-dynamic"])
def test_quantized_linears_take_less_room_and_still_answer(tmp_path: Path, quantize: str) -> None:
    folder = save_random_model(tmp_path, "llama", hidden_size=64, intermediate_size=128, head_dim=16)
    plain, quantized = make_runner(folder), make_runner(folder, quantize=quantize)
    assert quantized.model.weight_bytes < plain.model.weight_bytes
    assert len(generate(quantized, PROMPT, 4)[0]) == 4


def test_what_does_not_split_is_refused(tmp_path: Path) -> None:
    folder = ModelFolder.read(save_random_model(tmp_path, "llama", hidden_size=48, num_attention_heads=6))
    folder.check_world_size(6)
    with pytest.raises(ConfigurationError, match="6 attention heads cannot be split over 4 shards"):
        folder.check_world_size(4)
    with pytest.raises(ConfigurationError, match="2 key-value heads cannot be split over 3 shards"):
        folder.check_world_size(3)


def test_a_tensor_that_nothing_asked_for_is_not_passed_over(tmp_path: Path) -> None:
    folder = save_random_model(tmp_path, "llama")
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"model.layers.0.self_attn.q_norm.weight": torch.ones(8)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"does not know, such as layers\.0\.self_attn\.q_norm\.weight"):
        make_runner(folder)


def test_two_shards_may_hold_the_same_key_and_value_head(tmp_path: Path) -> None:
    model = save_random_model(tmp_path / "model", "llama", num_key_value_heads=1)
    serve_and_compare(model, tmp_path / "run", 2, False, "llama")

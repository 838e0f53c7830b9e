"""Adapted models against transformers' generate, on small random checkpoints: chunks, windows, experts, mixed batches.

Every type goes through tests/sweep."""

import json
from pathlib import Path

import pytest
import torch
from reference import Reference, compare
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from random_models import save_random_model
from runner_steps import generate, make_runner, make_step
from text_generation_server.capacity import full_step
from text_generation_server.errors import ConfigurationError, ModelError
from text_generation_server.models import ModelFolder
from text_generation_server.models.placing import put_in_place
from text_generation_server.models.tensor_plan import TensorPlan
from text_generation_server.models.transformers_loader import TransformersLoader
from text_generation_server.parallel import Parallel

PROMPT = [1, *range(40, 60), 9, 9, 250, 17]


@pytest.mark.parametrize(
    "model_type",
    ["cohere2", "deepseek_v2", "gemma3_text", "gpt2", "gpt_oss", "qwen3", "llama4_text", "mixtral", "olmo2", "opt", "phi3"],
)
def test_greedy_tokens_are_those_of_transformers_with_the_prompt_in_chunks(tmp_path: Path, model_type: str) -> None:
    folder = save_random_model(tmp_path, model_type)
    answer = Reference(folder).generate(PROMPT, 12)
    assert len(set(answer.token_ids)) > 2, "the test wants an answer that is not one repeated token"
    compare(answer, *generate(make_runner(folder), PROMPT, 12, chunk=7))


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("llama4_text", {"attn_temperature_tuning": True, "floor_scale": 8, "attn_scale": 0.5, "no_rope_layers": [1, 0]}),
        ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    ],
)
@pytest.mark.parametrize("chunk", [7, 512])
def test_what_a_model_says_in_its_configuration_alone_counts_wherever_a_token_lies(
    tmp_path: Path, model_type: str, options: dict[str, object], chunk: int
) -> None:
    folder = save_random_model(tmp_path, model_type, **options)
    plain = save_random_model(tmp_path / "plain", model_type)
    answer = Reference(folder).generate(PROMPT, 12)
    assert answer != Reference(plain).generate(PROMPT, 12), "the test wants an answer that it makes a difference to"
    compare(answer, *generate(make_runner(folder), PROMPT, 12, chunk))


@pytest.mark.parametrize("model_type", ["qwen3", "gemma2", "gpt2", "mixtral"])
def test_sequences_of_one_step_do_not_see_each_other(tmp_path: Path, model_type: str) -> None:
    folder = save_random_model(tmp_path, model_type)
    runner, reference = make_runner(folder), Reference(folder, stops=False)
    other = [1, 77, 78, 79, 80]
    expected = [reference.generate(prompt, 6).token_ids for prompt in (PROMPT, other)]
    answers: list[list[int]] = [[], []]
    steps = [
        make_step(0, add={0: PROMPT}, work=[(0, 0, len(PROMPT))]),
        make_step(1, add={1: other}, work=[(0, len(PROMPT), 1), (1, 0, len(other))]),
        *(make_step(2 + n, work=[(0, len(PROMPT) + 1 + n, 1), (1, len(other) + n, 1)]) for n in range(4)),
        make_step(6, work=[(1, len(other) + 4, 1)]),
    ]
    for step in steps:
        for token in runner.execute(step).tokens:
            answers[token.sequence_id].append(token.token_id)
    assert answers == expected


@pytest.mark.parametrize("model_type", ["qwen3", "mixtral", "gpt_oss"])
@pytest.mark.parametrize("quantize", ["bitsandbytes", "bitsandbytes-nf4"])
def test_quantized_linears_and_experts_take_less_room_and_still_answer(
    tmp_path: Path, quantize: str, model_type: str
) -> None:
    folder = save_random_model(tmp_path, model_type)
    plain, quantized = make_runner(folder), make_runner(folder, quantize=quantize)
    assert quantized.model.weight_bytes < 0.6 * plain.model.weight_bytes
    assert len(generate(quantized, PROMPT, 5)[0]) == 5


@pytest.mark.parametrize(
    ("model_type", "world_size", "reason"),
    [
        ("qwen3", 3, "4 heads of .*q_proj cannot be split over 3 shards"),
        ("ctrl", 2, "model type 'ctrl' runs on one shard only"),
        ("mpt", 2, "model type 'mpt' runs on one shard only"),
        ("longcat_flash", 2, "model type 'longcat_flash' runs on one shard only"),
    ],
)
def test_what_does_not_split_is_refused(tmp_path: Path, model_type: str, world_size: int, reason: str) -> None:
    folder = save_random_model(tmp_path, model_type)
    with pytest.raises(ConfigurationError, match=reason):
        ModelFolder.read(folder).check_world_size(world_size)


def test_grouped_heads_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    folder = save_random_model(tmp_path, "falcon", new_decoder_architecture=True, num_kv_heads=2)
    with pytest.raises(ConfigurationError, match="2 groups of heads cannot be split over 4 shards"):
        ModelFolder.read(folder).check_world_size(4)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon"), ({"n_head": 5}, "config.json of .* describes no model")],
)
def test_a_configuration_that_makes_no_sense_is_said_in_one_line(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    folder = save_random_model(tmp_path, "gpt2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ModelError, match=reason) as caught:
        make_runner(folder)
    assert "\n" not in str(caught.value)


def test_a_tied_head_is_there_once(tmp_path: Path) -> None:
    """On another device than the one it was loaded on, for which "meta" stands in here."""
    model = AutoModelForCausalLM.from_pretrained(save_random_model(tmp_path, "gemma2", tie_word_embeddings=True)).eval()
    with torch.device("meta"):
        outline = type(model)(model.config)
    put_in_place(model, TensorPlan(outline, Parallel()), torch.device("meta"), None)
    head, embedding = model.lm_head.linear.weight, model.get_input_embeddings().weight
    assert head.untyped_storage()._cdata == embedding.untyped_storage()._cdata


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    folder = save_random_model(tmp_path, "qwen3")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 missing keys, such as model\.layers\.1\.mlp\.up_proj\.weight"):
        make_runner(folder)


def test_rotary_positions_that_depend_on_the_batch_are_refused(tmp_path: Path) -> None:
    folder = save_random_model(tmp_path, "qwen3")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="'dynamic' change with the longest text"):
        make_runner(folder)


@pytest.mark.parametrize("model_type", ["phi3", "phimoe"])
def test_a_text_ends_where_its_rotary_positions_would_be_stretched(tmp_path: Path, model_type: str) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 40}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "short_mscale": 1.0, "long_mscale": 1.2}
    folder = save_random_model(tmp_path, model_type, rope_parameters=rope, original_max_position_embeddings=40)
    runner = make_runner(folder)
    assert runner.max_positions == 40
    compare(Reference(folder, stops=False).generate(PROMPT, 40 - len(PROMPT)), *generate(runner, PROMPT, 40 - len(PROMPT)))


@pytest.mark.parametrize("model_type", ["gpt2", "qwen3"])
def test_the_fullest_step_is_no_longer_than_the_model_has_positions(tmp_path: Path, model_type: str) -> None:
    runner = make_runner(save_random_model(tmp_path, model_type), max_batch_tokens=300)
    assert runner.max_positions < 300
    result = runner.execute(full_step(runner.max_batch_tokens, runner.max_positions, runner.block_size))
    assert not result.error
    assert sum(len(prompt.logprobs) + 1 for prompt in result.prompts) == 300


def test_buffers_of_old_checkpoints_are_passed_over_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_random_model(tmp_path, "gpt2")
    answer = Reference(folder).generate(PROMPT, 4)
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    compare(answer, *generate(make_runner(folder), PROMPT, 4))
    assert "such_as=transformer.h.0.attn.masked_bias" in caplog.text


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
        ("cohere", {"use_qk_norm": True}),
        ("mimo_v2_flash", {}),
    ],
)
def test_what_splits_only_in_its_own_way_can_be_split(tmp_path: Path, model_type: str, options: dict[str, object]) -> None:
    folder = save_random_model(tmp_path, model_type, **options)
    model, plan = TransformersLoader(folder, AutoModelForCausalLM, None).plan(Parallel(1, 2))
    assert plan.cuts
    for name, parameter in model.named_parameters():
        if "norm" in name and parameter.dim() == 2:
            assert parameter.shape[0] in (1, 2), name  # of 4 query and 2 key heads

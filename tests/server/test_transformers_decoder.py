"""Every adapted model type against transformers' generate, on small random checkpoints: chunks, windows, mixed batches."""

import json
from pathlib import Path

import pytest
from reference import Reference, compare
from safetensors.torch import load_file, save_file

from runner_steps import generate, make_runner, make_step
from text_generation_server.errors import ConfigurationError, ModelError
from text_generation_server.models import ADAPTED, ModelFolder
from tiny_decoders import save_random_decoder

PROMPT = [1, *range(40, 60), 9, 9, 250, 17]


@pytest.mark.parametrize("model_type", ADAPTED)
def test_greedy_tokens_are_those_of_transformers_with_the_prompt_in_chunks(tmp_path: Path, model_type: str) -> None:
    folder = save_random_decoder(tmp_path, model_type)
    answer = Reference(folder).generate(PROMPT, 12)
    assert len(set(answer.token_ids)) > 2, "the test wants an answer that is not one repeated token"
    compare(answer, *generate(make_runner(folder), PROMPT, 12, chunk=7))


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2", "mixtral"])
def test_sequences_of_one_step_do_not_see_each_other(tmp_path: Path, model_type: str) -> None:
    folder = save_random_decoder(tmp_path, model_type)
    runner, reference = make_runner(folder), Reference(folder)
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


@pytest.mark.parametrize("quantize", ["bitsandbytes", "bitsandbytes-nf4"])
def test_quantized_linears_take_less_room_and_still_answer(tmp_path: Path, quantize: str) -> None:
    folder = save_random_decoder(tmp_path, "llama", hidden_size=64, intermediate_size=128, head_dim=16)
    plain, quantized = make_runner(folder), make_runner(folder, quantize=quantize)
    assert quantized.model.weight_bytes < 0.6 * plain.model.weight_bytes
    assert len(generate(quantized, PROMPT, 5)[0]) == 5


def test_more_than_one_shard_is_refused(tmp_path: Path) -> None:
    folder = save_random_decoder(tmp_path, "llama")
    with pytest.raises(ConfigurationError, match="runs on one shard only"):
        ModelFolder.read(folder).check_world_size(2)


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    folder = save_random_decoder(tmp_path, "llama")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 missing keys, such as model\.layers\.1\.mlp\.up_proj\.weight"):
        make_runner(folder)


def test_rotary_positions_that_depend_on_the_batch_are_refused(tmp_path: Path) -> None:
    folder = save_random_decoder(tmp_path, "llama")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="'dynamic' change with the length of the text"):
        make_runner(folder)

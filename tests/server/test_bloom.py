"""Our BLOOM against transformers' on small random checkpoints: every head count, layout, option and dtype."""

import json
from pathlib import Path

import pytest
import torch
from reference import Reference, compare
from safetensors.torch import load_file, save_file
from transformers import BloomForCausalLM

from runner_steps import all_logits, generate, make_runner, make_step
from text_generation_server.errors import ModelError
from text_generation_server.models.bloom import BloomConfig
from text_generation_server.runner import Runner
from tiny_models import save_random_bloom

PROMPT = [1, *range(40, 60), 9, 9, 250, 17]
HEADS = {8: 8, 12: 8, 7: 8, 112: 4}  # number of heads: head_dim


@pytest.fixture(scope="module")
def runner(random_bloom: Path) -> Runner:
    return make_runner(random_bloom)


@pytest.fixture(scope="module")
def reference(random_bloom: Path) -> Reference:
    return Reference(random_bloom)


@torch.inference_mode()
def logits_of_transformers(folder: Path, token_ids: list[int]) -> torch.Tensor:
    return Reference(folder).model(torch.tensor([token_ids])).logits[0]


def resaved(source: Path, folder: Path, **options: object) -> Path:
    """The random model with options that save_random_bloom does not offer."""
    model = BloomForCausalLM.from_pretrained(source)
    config = model.config
    for name, value in options.items():
        setattr(config, name, value)
    torch.manual_seed(1)
    changed = BloomForCausalLM(config)
    changed.load_state_dict(model.state_dict(), strict=False)
    if not config.tie_word_embeddings:
        torch.nn.init.normal_(changed.lm_head.weight, std=0.3)
    changed.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("num_heads", HEADS)
def test_logits_and_greedy_tokens_are_those_of_transformers(tmp_path: Path, num_heads: int) -> None:
    num_layers = 1 if num_heads == 112 else 2
    folder = save_random_bloom(tmp_path, num_heads, num_layers, HEADS[num_heads])
    runner = make_runner(folder)
    torch.testing.assert_close(
        all_logits(runner, PROMPT), logits_of_transformers(folder, PROMPT), rtol=1e-4, atol=1e-3
    )
    compare(Reference(folder).generate(PROMPT, 12), *generate(runner, PROMPT, 12))


@pytest.mark.parametrize("chunk", [1, 3, 16, 17])
def test_a_prompt_in_chunks_answers_like_the_whole_prompt(runner: Runner, reference: Reference, chunk: int) -> None:
    token_ids, logprobs = generate(runner, PROMPT, 10)
    compare(reference.generate(PROMPT, 10), token_ids, logprobs)
    chunked_ids, chunked_logprobs = generate(runner, PROMPT, 10, chunk)
    assert chunked_ids == token_ids
    assert chunked_logprobs == pytest.approx(logprobs, abs=1e-4)


def test_decode_and_prefill_in_one_step_answer_like_each_alone(runner: Runner) -> None:
    prompts = {0: PROMPT, 1: [5, 6, 7], 2: [8] * 40, 3: [99]}
    alone = {index: generate(runner, prompt, 3)[0] for index, prompt in prompts.items()}
    found: dict[int, list[int]] = {index: [] for index in prompts}
    steps = [
        make_step(0, add={0: PROMPT, 3: [99]}, work=[(0, 0, 25), (3, 0, 1)]),
        make_step(1, add={1: [5, 6, 7], 2: [8] * 40}, work=[(1, 0, 3), (0, 25, 1), (2, 0, 40), (3, 1, 1)]),
        make_step(2, work=[(2, 40, 1), (1, 3, 1), (3, 2, 1), (0, 26, 1)]),
        make_step(3, work=[(2, 41, 1), (1, 4, 1)], drop=[0, 3]),
    ]
    for step in steps:
        result = runner.execute(step)
        assert not result.error
        for token in result.tokens:
            found[token.sequence_id].append(token.token_id)
    runner.reset()
    assert found == alone


def test_a_cached_prefix_needs_no_second_computation(runner: Runner) -> None:
    """Another sequence names the first one's full block as its own."""
    expected, _ = generate(runner, PROMPT, 1)
    runner.execute(make_step(0, add={0: PROMPT}, work=[(0, 0, 25)]))
    step = make_step(1, add={1: PROMPT})
    step.work.add(sequence_id=1, start=16, length=9, block_ids=[0, 20], sample=True)
    result = runner.execute(step)
    runner.reset()
    assert [token.token_id for token in result.tokens] == expected


@pytest.mark.parametrize(
    "option", [{"apply_residual_connection_post_layernorm": True}, {"tie_word_embeddings": False}], ids=str
)
def test_options_of_the_config_are_honoured(random_bloom: Path, tmp_path: Path, option: dict[str, bool]) -> None:
    folder = resaved(random_bloom, tmp_path, **option)
    logits = all_logits(make_runner(folder), PROMPT)
    torch.testing.assert_close(logits, logits_of_transformers(folder, PROMPT), rtol=1e-4, atol=1e-3)
    assert not torch.allclose(logits, logits_of_transformers(random_bloom, PROMPT), atol=0.1)


@pytest.mark.parametrize("num_files", [1, 3])
@pytest.mark.parametrize("prefix", ["", "transformer."], ids=["published names", "saved names"])
def test_both_layouts_of_names_and_files_give_the_same_model(
    random_bloom: Path, tmp_path: Path, runner: Runner, prefix: str, num_files: int
) -> None:
    tensors = load_file(random_bloom / "model.safetensors")
    tensors = {prefix + name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    if prefix:
        tensors["lm_head.weight"] = tensors["transformer.word_embeddings.weight"].clone()  # some checkpoints carry it twice
    write_files(tmp_path, tensors, num_files)
    (tmp_path / "config.json").write_text((random_bloom / "config.json").read_text())
    assert torch.equal(all_logits(make_runner(tmp_path), PROMPT), all_logits(runner, PROMPT))


def write_files(folder: Path, tensors: dict[str, torch.Tensor], num_files: int) -> None:
    if num_files == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    files = {name: f"model-{index % num_files + 1:05}-of-{num_files:05}.safetensors" for index, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs_on_cpu_and_stays_close(random_bloom: Path, runner: Runner, dtype: str) -> None:
    half = make_runner(random_bloom, dtype=dtype)
    logits, exact = all_logits(half, PROMPT), all_logits(runner, PROMPT)
    assert logits.dtype == torch.float32
    bound = 0.1 if dtype == "bfloat16" else 0.02
    assert (logits - exact).norm() < bound * exact.norm()
    assert half.model.weight_bytes * 2 == runner.model.weight_bytes
    token_ids, _ = generate(half, PROMPT, 5)
    assert len(token_ids) == 5


def test_published_configs_use_older_names() -> None:
    old = {"vocab_size": 250880, "n_embed": 14336, "n_layer": 70, "num_attention_heads": 112, "seq_length": 2048}
    new = {"vocab_size": 250880, "hidden_size": 14336, "num_hidden_layers": 70, "n_head": 112}
    assert BloomConfig.from_json(old) == BloomConfig.from_json(new)
    assert BloomConfig.from_json(old).head_dim == 128


def test_a_checkpoint_with_fewer_layers_than_its_config_is_refused(random_bloom: Path, tmp_path: Path) -> None:
    config = json.loads((random_bloom / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"n_layer": 4}))
    (tmp_path / "model.safetensors").symlink_to(random_bloom / "model.safetensors")
    with pytest.raises(ModelError, match=r"the checkpoint has no tensor h\.3\.input_layernorm\.weight"):
        make_runner(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"n_layer": 2}))
    with pytest.raises(ModelError, match=r"12 tensors that the model does not know, such as h\.2"):
        make_runner(tmp_path)

"""Decoders in transformers' own code against its generate: crowds that come and go, states, and what is refused."""

import json
from pathlib import Path

import pytest
from reference import Reference, compare

from random_models import save_random_model
from runner_steps import generate, make_runner, make_step
from text_generation_proto.shard_pb2 import StepResult
from text_generation_server.errors import ModelError
from text_generation_server.models import ModelFolder
from text_generation_server.runner import Runner

PROMPTS = [[1, *range(40, 60), 9, 9, 250, 17], [1, 77, 78, 79, 80], [5], [*range(90, 101)], [1, 200, 3, 77, 4, 9, 30], [8, 8]]
NUM_TOKENS = 7
NO_END = {"eos_token_id": None, "forced_eos_token_id": None}
# One of each way to be served.
TYPES = {
    "gptj": "blocks, positions given",
    "bart": "blocks, positions counted by the model",
    "mpt": "blocks, no positions",
    "roformer": "blocks, decodes in groups of the same length",
    "glm_moe_dsa": "blocks, and in them what chooses between tokens",
    "mamba": "a state",
    "jamba": "a state in some layers, blocks in others",
    "falcon_h1": "a state and blocks in every layer",
    "rwkv": "a state in the model's own form, one sequence at a time",
    "xlstm": "a state in the model's own form, sequences together",
    "openai-gpt": "nothing but the tokens",
}


def save(folder: Path, model_type: str) -> Path:
    """Whose generate goes on after an end-of-sequence token."""
    save_random_model(folder, model_type)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | NO_END))
    return folder


def serve(runner: Runner, prompts: list[list[int]], chunk: int) -> list[list[tuple[int, float]]]:
    """Up to three at once: whenever one has its tokens, the next prompt takes over its id and its blocks."""
    answers: list[list[tuple[int, float]]] = [[] for _ in prompts]
    running: dict[int, tuple[int, int]] = {}  # by sequence id: which prompt, and where it is
    waiting, leaving = list(range(len(prompts))), []
    while running or waiting:
        new = {}
        if waiting and (free := {0, 1, 2} - running.keys()):
            new[min(free)] = prompts[waiting[0]]
            running[min(free)] = (waiting.pop(0), 0)
        works = []
        for number, (prompt, start) in running.items():
            works.append((number, start, max(1, min(chunk, len(prompts[prompt]) - start))))
        samples = {number: start + length >= len(prompts[running[number][0]]) for number, start, length in works}
        step = make_step(add=new, work=works, drop=leaving)
        for work in step.work:
            work.sample = samples[work.sequence_id]
        for token in succeed(runner.execute(step)).tokens:
            answers[running[token.sequence_id][0]].append((token.token_id, token.logprob))
        running = {number: (running[number][0], start + length) for number, start, length in works}
        leaving = [number for number, (prompt, _) in running.items() if len(answers[prompt]) == NUM_TOKENS]
        for number in leaving:
            del running[number]
    return answers


def succeed(result: StepResult) -> StepResult:
    assert not result.error, result.error
    return result


@pytest.mark.parametrize("model_type", TYPES)
def test_a_crowd_that_comes_and_goes_gets_the_answers_that_each_would_get_alone(tmp_path: Path, model_type: str) -> None:
    folder = save(tmp_path, model_type)
    runner, reference = make_runner(folder), Reference(folder)
    answers = serve(runner, PROMPTS, chunk=7 if runner.model.chunked_prefill else 100)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        expected = reference.generate(prompt, NUM_TOKENS)
        compare(expected, [token_id for token_id, _ in answer], [logprob for _, logprob in answer])


def test_a_sequence_can_begin_with_blocks_that_another_one_computed(tmp_path: Path) -> None:
    runner = make_runner(save(tmp_path, "gptj"))
    prompt = PROMPTS[0]
    expected = generate(runner, prompt, 1)[0]
    runner.execute(make_step(add={0: [*prompt[:16], 99, 98]}, work=[(0, 0, 18)]))
    step = make_step(add={1: prompt}, work=[(1, 16, len(prompt) - 16)])
    step.work[0].block_ids[0] = 0
    assert [token.token_id for token in succeed(runner.execute(step)).tokens] == expected


@pytest.mark.parametrize(("model_type", "block_size"), [("mamba", 2048), ("jamba", 256), ("openai-gpt", 128), ("gptj", 16)])
def test_a_block_holds_a_whole_sequence_of_a_model_without_keys_and_many_tokens_of_a_hybrid(
    tmp_path: Path, model_type: str, block_size: int
) -> None:
    runner = make_runner(save(tmp_path, model_type))
    assert runner.block_size == block_size
    assert runner.model.prefix_cache == (model_type == "gptj")
    state_bytes = runner.model.state_bytes
    assert (state_bytes > 0) == (model_type != "gptj")
    assert not state_bytes or runner.num_blocks <= 0.02 * 2**30 / state_bytes


def test_what_takes_prompts_as_a_whole_only_has_a_budget_for_the_longest_and_refuses_parts(tmp_path: Path) -> None:
    folder = save(tmp_path, "mamba")
    small = make_runner(folder, max_batch_tokens=20)
    assert (small.max_batch_tokens, small.max_positions) == (20, 20)
    runner = make_runner(folder)
    assert not runner.model.chunked_prefill
    assert runner.max_batch_tokens == runner.max_positions == runner.model.config.max_positions
    prompt = PROMPTS[0]
    succeed(runner.execute(make_step(add={0: prompt}, work=[(0, 0, 7)], sample=False)))
    assert "takes a prompt as a whole only" in runner.execute(make_step(work=[(0, 7, 7)], sample=False)).error
    runner.reset()
    assert len(generate(runner, prompt, 3)[0]) == 3


@pytest.mark.parametrize("model_type", ["mamba", "openai-gpt"])
def test_a_sequence_that_starts_behind_what_was_computed_is_refused(tmp_path: Path, model_type: str) -> None:
    runner = make_runner(save(tmp_path, model_type))
    assert "goes on" in runner.execute(make_step(add={0: [5, 6, 7]}, work=[(0, 2, 1)])).error


@pytest.mark.parametrize("model_type", ["mamba", "openai-gpt"])
def test_what_is_dropped_is_forgotten(tmp_path: Path, model_type: str) -> None:
    runner = make_runner(save(tmp_path, model_type))
    succeed(runner.execute(make_step(add={0: [5, 6]}, work=[(0, 0, 2)])))
    succeed(runner.execute(make_step(drop=[0])))
    assert "goes on" in runner.execute(make_step(add={0: [5, 6, 7]}, work=[(0, 2, 1)])).error


@pytest.mark.parametrize("model_type", ["mamba", "openai-gpt"])
def test_nothing_is_left_when_a_driver_is_gone(tmp_path: Path, model_type: str) -> None:
    runner = make_runner(save(tmp_path, model_type))
    succeed(runner.execute(make_step(add={0: [5, 6]}, work=[(0, 0, 2)])))
    runner.reset()
    assert "goes on" in runner.execute(make_step(add={0: [5, 6, 7]}, work=[(0, 2, 1)])).error


@pytest.mark.parametrize("model_type", ["gptj", "mamba"])
@pytest.mark.parametrize("quantize", ["bitsandbytes", "bitsandbytes-nf4"])
def test_quantized_linears_take_less_room_and_still_answer(tmp_path: Path, model_type: str, quantize: str) -> None:
    folder = save(tmp_path, model_type)
    plain, quantized = make_runner(folder), make_runner(folder, quantize=quantize)
    assert quantized.model.weight_bytes < plain.model.weight_bytes
    assert len(generate(quantized, PROMPTS[0], 5)[0]) == 5


def test_rwkv_answers_the_same_however_often_its_layers_halve_what_they_hand_on(tmp_path: Path) -> None:
    folder = save_random_model(tmp_path, "rwkv", rescale_every=1)
    answer = Reference(folder).generate(PROMPTS[0], 5)
    compare(answer, *generate(make_runner(folder), PROMPTS[0], 5))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert"}, "is an encoder: config.json of a 'bert' that generates text says is_decoder"),
        ({"model_type": "xlnet"}, "model type 'xlnet' is not served: it fills in a masked token"),
    ],
)
def test_what_would_be_answered_wrongly_is_refused(tmp_path: Path, config: dict[str, str], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        ModelFolder.read(tmp_path)

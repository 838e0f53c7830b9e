"""Models with an encoder against transformers' generate, on small random checkpoints: batches that sequences join and leave,
what a configuration forces, limits of positions, ranks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import Answer, Reference, compare
from tokenizers import Tokenizer

from random_models import save_random_model
from runner_steps import BLOCKS_PER_SEQUENCE, execute, generate, make_runner, make_step
from shard_processes import ShardProcesses
from text_generation_proto.shard_pb2 import GenerateRequest, SamplingParameters, StepResult
from text_generation_router.shards import ShardGroup
from text_generation_server.errors import ModelError
from text_generation_server.models import ModelFolder
from text_generation_server.runner import Runner

PROMPTS = [[*range(40, 60), 9, 9, 250, 17, 2], [77, 78, 79, 80, 81, 2], [120, 121, 90, 2], [*range(200, 240), 2]]
NUM_TOKENS = 10
JOINS = [0, 2, 2, 5]  # the step in which each prompt comes


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("t5"), "t5", seq2seq=True)


def run_together(runner: Runner, prompts: list[list[int]]) -> list[tuple[list[int], list[float]]]:
    """The tokens of each prompt and their log-probabilities, as the prompts come one after the other into one batch."""
    answers: list[tuple[list[int], list[float]]] = [([], []) for _ in prompts]
    for number in range(max(JOINS) + NUM_TOKENS):
        begun = [row for row, join in enumerate(JOINS[: len(prompts)]) if join == number]
        going = [row for row, (token_ids, _) in enumerate(answers) if 0 < len(token_ids) < NUM_TOKENS]
        work = [(row, 0, len(prompts[row])) for row in begun]
        work += [(row, len(prompts[row]) + len(answers[row][0]) - 1, 1) for row in going]
        for token in checked(runner.execute(make_step(number, add={row: prompts[row] for row in begun}, work=work))).tokens:
            answers[token.sequence_id][0].append(token.token_id)
            answers[token.sequence_id][1].append(token.logprob)
    runner.reset()
    return answers


def checked(result: StepResult) -> StepResult:
    assert not result.error, result.error
    return result


def compare_start(answer: Answer, token_ids: list[int], logprobs: list[float]) -> None:
    """Nobody here stops at an end token."""
    length = len(answer.token_ids)
    compare(answer, token_ids[:length], logprobs[:length])


def with_generation_config(folder: Path, **values: Any) -> Path:
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


@pytest.mark.parametrize("model_type", ["bart", "led", "m2m_100", "marian", "pegasus", "t5", "t5gemma", "umt5"])
def test_sequences_that_come_one_after_the_other_get_what_transformers_says_to_each(tmp_path: Path, model_type: str) -> None:
    folder = save_random_model(tmp_path, model_type, seq2seq=True)
    reference = Reference(folder, seq2seq=True)
    expected = [reference.generate(prompt, NUM_TOKENS) for prompt in PROMPTS]
    for answer, (token_ids, logprobs) in zip(expected, run_together(make_runner(folder), PROMPTS), strict=True):
        compare_start(answer, token_ids, logprobs)


def test_a_sequence_that_comes_again_with_its_tokens_goes_on_exactly(t5: Path) -> None:
    runner = make_runner(t5)
    token_ids, logprobs = generate(runner, PROMPTS[0], NUM_TOKENS)
    prompt_length = len(PROMPTS[0])
    again, again_logprobs = generate(
        runner, PROMPTS[0] + token_ids[:6], NUM_TOKENS - 6, num_prompt_tokens=prompt_length
    )
    assert again == token_ids[6:]
    assert again_logprobs == pytest.approx(logprobs[6:], abs=1e-4)


def test_what_the_encoder_has_no_positions_for_is_left_out_before_the_last_token(tmp_path: Path) -> None:
    folder = save_random_model(tmp_path, "bart", seq2seq=True, max_position_embeddings=16)
    prompt = PROMPTS[0]
    runner = make_runner(folder)
    assert runner.model.config.max_positions == 32
    answer = Reference(folder, seq2seq=True).generate([*prompt[:15], prompt[-1]], 8)
    compare_start(answer, *generate(runner, prompt, 8))


def test_the_decoders_positions_are_never_overrun(tmp_path: Path) -> None:
    folder = save_random_model(tmp_path, "bart", seq2seq=True, max_position_embeddings=8)
    runner = make_runner(folder)
    assert runner.model.decoding.max_new_tokens == 8
    assert len(generate(runner, [120, 2], 8)[0]) == 8
    result = runner.execute(make_step(add={0: [120, 2, *range(50, 58)]}, work=[(0, 0, 10)], num_prompt_tokens=2))
    assert result.error == "sequence 0: the decoder has 8 positions"


def test_a_prompt_comes_as_a_whole(t5: Path) -> None:
    result = make_runner(t5).execute(make_step(add={0: PROMPTS[0]}, work=[(0, 0, 10)], sample=False))
    assert result.error == "sequence 0: a prompt is encoded as a whole, and then come single tokens"


def test_first_and_last_tokens_are_those_that_the_configuration_forces(tmp_path: Path) -> None:
    folder = save_random_model(tmp_path, "bart", seq2seq=True)
    with_generation_config(folder, forced_bos_token_id=123, forced_eos_token_id=2)
    answer = Reference(folder, seq2seq=True).generate(PROMPTS[0], 6)
    token_ids, logprobs = generate(make_runner(folder), PROMPTS[0], 6, max_new_tokens=6)
    assert (token_ids[0], token_ids[-1], logprobs[0], logprobs[-1]) == (123, 2, 0.0, 0.0)
    compare(answer, token_ids, logprobs)


def test_banned_tokens_are_not_said(tmp_path: Path) -> None:
    folder = save_random_model(tmp_path, "marian", seq2seq=True)
    first = Reference(folder, seq2seq=True).generate(PROMPTS[0], 6).token_ids
    with_generation_config(folder, bad_words_ids=[[token_id] for token_id in set(first[:2])])
    answer = Reference(folder, seq2seq=True).generate(PROMPTS[0], 6)
    assert not set(first[:2]) & set(answer.token_ids)
    compare_start(answer, *generate(make_runner(folder), PROMPTS[0], 6))


def test_penalties_are_for_what_was_said_and_not_for_what_was_read(tmp_path: Path) -> None:
    folder = save_random_model(tmp_path, "bart", seq2seq=True)
    sampling = SamplingParameters(repetition_penalty=1.5)
    first = generate(make_runner(folder), PROMPTS[0], 3)[0]
    prompt = [*first, *PROMPTS[0]]
    token_ids, logprobs = generate(make_runner(folder), prompt, NUM_TOKENS, sampling=sampling)
    with_generation_config(folder, repetition_penalty=1.5)
    compare_start(Reference(folder, seq2seq=True).generate(prompt, NUM_TOKENS), token_ids, logprobs)


def test_a_prompt_has_no_log_probabilities(t5: Path) -> None:
    (result,) = execute(make_runner(t5), PROMPTS[0], 1, prompt_logprobs=True, num_top_tokens=2)
    assert not result.prompts
    assert len(result.tokens[0].top_token_ids) == 2


def test_the_last_token_of_a_block_and_the_first_of_the_next_are_right(t5: Path) -> None:
    prompt = [*range(30, 30 + 2 * BLOCKS_PER_SEQUENCE), 2]
    answer = Reference(t5, seq2seq=True).generate(prompt, NUM_TOKENS)
    compare_start(answer, *generate(make_runner(t5, block_size=4), prompt, NUM_TOKENS))


async def test_two_ranks_generate_texts_as_transformers_does(tmp_path: Path, shard_processes: ShardProcesses) -> None:
    folder = save_random_model(tmp_path, "t5", seq2seq=True, vocab_size=301)  # which is not even
    inputs = ["Once upon a time", "a", "The quick brown fox"]
    group = await ShardGroup.connect(shard_processes.start(folder, 2, "--dtype", "float32", "--kv-cache-gib", "0.05"))
    request = GenerateRequest(inputs=inputs, max_new_tokens=NUM_TOKENS)
    responses = [response async for response in group.generate(request)]
    await group.close()
    reference, tokenizer = Reference(folder, seq2seq=True), Tokenizer.from_file(str(folder / "tokenizer.json"))
    for index, text in enumerate(inputs):
        row = [response for response in responses if response.index == index]
        answer = reference.generate(tokenizer.encode(text).ids, NUM_TOKENS)
        compare(answer, [token.token_id for token in row], [token.logprob for token in row])


@pytest.mark.parametrize("quantize", ["bitsandbytes", "bitsandbytes-nf4"])
def test_quantized_linears_take_less_room_and_still_answer(tmp_path: Path, quantize: str) -> None:
    folder = save_random_model(tmp_path, "t5", seq2seq=True, d_model=64, d_ff=128)
    plain, quantized = make_runner(folder), make_runner(folder, quantize=quantize)
    assert quantized.model.weight_bytes < 0.6 * plain.model.weight_bytes
    assert len(generate(quantized, PROMPTS[0], 5)[0]) == 5


def test_half_precision_answers(t5: Path) -> None:
    """float16 T5 keeps one matrix of each layer in float32."""
    for dtype in ("bfloat16", "float16"):
        assert len(generate(make_runner(t5, dtype=dtype), PROMPTS[0], 5)[0]) == 5


def test_a_decoder_of_a_type_that_also_has_an_encoder_is_one(tmp_path: Path) -> None:
    decoder = save_random_model(tmp_path / "decoder", "bart")
    model, _ = ModelFolder.read(decoder).load(torch.device("cpu"), torch.float32, make_runner(decoder).parallel, None)
    assert model.decoding is None


@pytest.mark.parametrize(
    ("model_type", "reason"), [("voxtral", "listens to a recording"), ("fsmt", "a vocabulary each"), ("prophetnet", "at once")]
)
def test_types_that_cannot_be_served_are_refused_with_the_reason(tmp_path: Path, model_type: str, reason: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "is_encoder_decoder": True}))
    with pytest.raises(ModelError, match=reason):
        ModelFolder.read(tmp_path)


def test_a_decoder_with_another_vocabulary_than_its_encoder_is_refused(tmp_path: Path) -> None:
    folder = save_random_model(
        tmp_path, "marian", seq2seq=True, decoder_vocab_size=310, share_encoder_decoder_embeddings=False
    )
    with pytest.raises(ModelError, match="its encoder knows 300 tokens and its decoder 310"):
        make_runner(folder)

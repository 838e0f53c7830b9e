"""Texts in, texts out, by the shard alone: chunks, stop sequences, ends, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from reference import Reference, compare
from tokenizers import Tokenizer

from runner_steps import make_runner
from text_generation_proto.shard_pb2 import GenerateRequest, GenerateResponse, SamplingParameters
from text_generation_server.errors import StepError
from text_generation_server.generation import Generation
from text_generation_server.runner import Runner

INPUTS = ["Once upon a time", "a", "The quick brown fox jumps over the lazy dog, again and again."]


@pytest.fixture(scope="module")
def runner(random_bloom: Path) -> Runner:
    return make_runner(random_bloom, max_batch_tokens=32)


@pytest.fixture(scope="module")
def tokenizer(random_bloom: Path) -> Tokenizer:
    return Tokenizer.from_file(str(random_bloom / "tokenizer.json"))


def generate(runner: Runner, tokenizer: Tokenizer, **request: Any) -> list[list[GenerateResponse]]:
    """The responses of each input."""
    generation = Generation(GenerateRequest(**request), runner, tokenizer)
    rows: list[list[GenerateResponse]] = [[] for _ in request["inputs"]]
    try:
        for responses in generation.steps():
            for response in responses:
                rows[response.index].append(response)
    finally:
        runner.reset()
    return rows


def refusal(runner: Runner, tokenizer: Tokenizer, **request: Any) -> str:
    with pytest.raises(StepError) as caught:
        generate(runner, tokenizer, **request)
    return str(caught.value)


def test_a_batch_of_different_lengths_answers_like_transformers_alone(
    random_bloom: Path, runner: Runner, tokenizer: Tokenizer
) -> None:
    reference = Reference(random_bloom)
    rows = generate(runner, tokenizer, inputs=INPUTS, max_new_tokens=30)
    for text, row in zip(INPUTS, rows, strict=True):
        answer = reference.generate(tokenizer.encode(text).ids, 30)
        compare(answer, [response.token_id for response in row], [response.logprob for response in row])


@pytest.mark.parametrize("max_new_tokens", range(1, 16))
def test_the_pieces_join_to_the_whole_text_even_when_it_ends_within_a_character(
    runner: Runner, tokenizer: Tokenizer, max_new_tokens: int
) -> None:
    for row in generate(runner, tokenizer, inputs=INPUTS, max_new_tokens=max_new_tokens):
        assert row[-1].finish_reason in ("length", "eos_token")
        assert row[-1].generated_text == tokenizer.decode([response.token_id for response in row])
        assert "".join(response.text for response in row) == row[-1].generated_text
        assert not any(response.finish_reason or response.generated_text for response in row[:-1])


def test_twenty_tokens_are_the_default(runner: Runner, tokenizer: Tokenizer) -> None:
    [row] = generate(runner, tokenizer, inputs=["Hello"])
    assert len(row) == 20
    assert row[-1].finish_reason == "length"


def test_an_end_of_sequence_token_ends_its_row_and_no_other(runner: Runner, tokenizer: Tokenizer) -> None:
    """A penalty this small makes tokens that occurred before certain, here the end that the prompt names."""
    sampling = SamplingParameters(repetition_penalty=1e-3)
    ended, other = generate(runner, tokenizer, inputs=["</s>", "xy"], max_new_tokens=6, sampling=sampling)
    assert [response.token_id for response in ended] == [2]
    assert (ended[-1].finish_reason, ended[-1].generated_text) == ("eos_token", "")
    assert len(other) == 6


def test_a_stop_sequence_ends_its_row_with_the_complete_text(runner: Runner, tokenizer: Tokenizer) -> None:
    [row] = generate(runner, tokenizer, inputs=["Hello"], max_new_tokens=30)
    whole = row[-1].generated_text
    stop = next(whole[i : i + 2] for i in range(5, len(whole)) if "\ufffd" not in whole[i : i + 2])
    [stopped] = generate(runner, tokenizer, inputs=["Hello"], max_new_tokens=30, stop=["never there", stop])
    assert stopped[-1].finish_reason == "stop_sequence"
    assert stopped[-1].generated_text == whole[: whole.index(stop) + len(stop)]
    assert "".join(response.text for response in stopped) == stopped[-1].generated_text


def test_sampled_rows_follow_their_seed(runner: Runner, tokenizer: Tokenizer) -> None:
    def texts(seed: int) -> list[str]:
        sampling = SamplingParameters(do_sample=True, temperature=1.5, seed=seed)
        return [row[-1].generated_text for row in generate(runner, tokenizer, inputs=INPUTS, sampling=sampling)]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)


def test_penalties_and_biases_hold_for_each_row(runner: Runner, tokenizer: Tokenizer) -> None:
    """The prompt's own tokens do not count, and each generated one counts once."""
    sampling = SamplingParameters(logit_bias={40: 100.0, 41: 100.0}, presence_penalty=1000.0)
    for row in generate(runner, tokenizer, inputs=["DEDE", "D", "x"], max_new_tokens=3, sampling=sampling):
        found = [response.token_id for response in row]
        assert set(found[:2]) == {40, 41}
        assert found[2] not in (40, 41)


def test_more_prompt_tokens_than_one_step_takes_are_computed_in_chunks(runner: Runner, tokenizer: Tokenizer) -> None:
    inputs = ["x" * length for length in (70, 31, 33, 1)]
    together = generate(runner, tokenizer, inputs=inputs, max_new_tokens=5)
    for text, row in zip(inputs, together, strict=True):
        [alone] = generate(runner, tokenizer, inputs=[text], max_new_tokens=5)
        assert [response.token_id for response in row] == [response.token_id for response in alone]


@pytest.mark.parametrize("inputs", [[], [""], ["a", ""]], ids=str)
def test_empty_inputs_are_refused(runner: Runner, tokenizer: Tokenizer, inputs: list[str]) -> None:
    assert refusal(runner, tokenizer, inputs=inputs) == "inputs cannot be empty"


def test_an_input_of_which_the_tokenizer_leaves_nothing_is_refused(runner: Runner, tokenizer: Tokenizer) -> None:
    from tokenizers.normalizers import Strip

    stripping = Tokenizer.from_str(tokenizer.to_str())
    stripping.normalizer = Strip()
    assert refusal(runner, stripping, inputs=["  "], max_new_tokens=2) == "inputs cannot be empty"


def test_parameters_out_of_range_are_refused(runner: Runner, tokenizer: Tokenizer) -> None:
    message = refusal(runner, tokenizer, inputs=["a"], sampling=SamplingParameters(temperature=-1))
    assert message == "temperature and repetition_penalty must be strictly positive"
    message = refusal(runner, tokenizer, inputs=["a"], sampling=SamplingParameters(logit_bias={1000: 1.0}))
    assert message == "sequence 0: token ids must be less than 300"


def test_an_empty_stop_sequence_is_refused(runner: Runner, tokenizer: Tokenizer) -> None:
    assert "stop" in refusal(runner, tokenizer, inputs=["a"], stop=[""])


def test_more_tokens_than_the_cache_holds_are_refused_at_once(runner: Runner, tokenizer: Tokenizer) -> None:
    message = refusal(runner, tokenizer, inputs=["a"] * 32, max_new_tokens=runner.max_positions - 1)
    assert message.startswith("inputs and max_new_tokens need ")
    assert message.endswith(f"KV blocks, there are {runner.num_blocks}")


@pytest.mark.parametrize(("length", "max_new_tokens"), [(1, 2048), (1, 2**32 - 1), (2030, 20)])
def test_more_tokens_than_the_model_has_positions_are_refused_at_once(
    runner: Runner, tokenizer: Tokenizer, length: int, max_new_tokens: int
) -> None:
    """With several ranks a forward that fails would end them all."""
    assert runner.max_positions == 2048
    message = refusal(runner, tokenizer, inputs=["a", "a" * length], max_new_tokens=max_new_tokens)
    assert message.startswith("the model has 2048 positions, input ")


def test_more_inputs_than_tokens_of_a_step_are_refused(runner: Runner, tokenizer: Tokenizer) -> None:
    assert refusal(runner, tokenizer, inputs=["a"] * 33, max_new_tokens=1) == "at most 32 inputs"

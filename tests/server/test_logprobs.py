"""What is said of tokens is transformers' log-softmax, for prompts in any chunks, beside other sequences, and on two ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from reference import Reference
from tokenizers import Tokenizer

from runner_steps import execute, generate, make_runner, make_step, score_prompt
from sampling_rows import VOCAB_SIZE, make_logits, make_sampling
from text_generation_proto.shard_pb2 import SamplingParameters
from text_generation_server.batch import PromptRows
from text_generation_server.logprobs import Logprobs
from text_generation_server.parallel import Parallel
from text_generation_server.runner import Runner
from text_generation_server.sequences import SequenceState
from two_ranks import PROMPT

TEXT = "ROMEO:\nBut, soft! what light through yonder window breaks?\nIt is the east, and Juliet is the sun."


@pytest.fixture(scope="module")
def runner(embedded_model: Path) -> Runner:
    return make_runner(embedded_model)


@pytest.fixture(scope="module")
def prompt(embedded_model: Path) -> list[int]:
    return Tokenizer.from_file(str(embedded_model / "tokenizer.json")).encode(TEXT).ids


@torch.inference_mode()
def of_transformers(folder: Path, token_ids: list[int]) -> torch.Tensor:
    """[num_tokens, vocab_size]"""
    return Reference(folder).model(torch.tensor([token_ids])).logits[0].log_softmax(-1)


@pytest.fixture(scope="module")
def truth(embedded_model: Path, prompt: list[int]) -> torch.Tensor:
    return of_transformers(embedded_model, prompt)


def assert_prompt(
    found: tuple[list[float], list[int], list[float]], truth: torch.Tensor, token_ids: list[int], num_top: int
) -> None:
    targets = torch.tensor(token_ids[1:])
    before = truth[: len(targets)]
    logprobs, top_ids, top_logprobs = found
    assert logprobs == pytest.approx(before.gather(1, targets.unsqueeze(1)).squeeze(1).tolist(), abs=1e-4)
    assert top_logprobs == pytest.approx(before.topk(num_top).values.flatten().tolist(), abs=1e-4)
    named = torch.tensor(top_ids).view(-1, num_top) if num_top else torch.empty(len(targets), 0, dtype=torch.long)
    assert before.gather(1, named).flatten().tolist() == pytest.approx(top_logprobs, abs=1e-4)
    assert all(len(set(row)) == num_top for row in named.tolist())


@pytest.mark.parametrize("num_top", [0, 1, 5])
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_prompt_logprobs_are_those_of_transformers(
    runner: Runner, prompt: list[int], truth: torch.Tensor, chunk: int, num_top: int
) -> None:
    assert_prompt(score_prompt(runner, prompt, num_top, chunk), truth, prompt, num_top)


def test_the_logits_of_a_long_prompt_are_never_there_at_once() -> None:
    hidden = make_logits(20)
    sequence = SequenceState(0, list(range(100, 120)), make_sampling(), 20, num_top_tokens=3)
    sizes = []

    def head(rows: torch.Tensor) -> torch.Tensor:
        sizes.append(rows.shape[0])
        return rows.clone()

    prompts = [PromptRows(sequence, range(1, 12), range(0, 11)), PromptRows(sequence, range(13, 20), range(12, 19))]
    whole = Logprobs(VOCAB_SIZE, Parallel()).of_prompts(hidden, prompts, head)
    sliced = Logprobs(VOCAB_SIZE, Parallel(), prompt_logits_bytes=4 * VOCAB_SIZE * 5).of_prompts(hidden, prompts, head)
    assert sizes == [18, 5, 5, 5, 3]
    for found, expected in zip(sliced, whole, strict=True):
        torch.testing.assert_close(found, expected)


def test_penalties_do_not_change_how_likely_a_prompt_is(runner: Runner, prompt: list[int], truth: torch.Tensor) -> None:
    sampling = SamplingParameters(repetition_penalty=3.0, logit_bias={5: 100}, watermark=True)
    assert_prompt(score_prompt(runner, prompt, 2, sampling=sampling), truth, prompt, 2)


def test_a_preempted_sequence_tells_of_its_prompt_and_not_of_what_it_generated(
    runner: Runner, prompt: list[int], truth: torch.Tensor
) -> None:
    token_ids, _ = generate(runner, prompt, 4)
    found = score_prompt(runner, prompt + token_ids, 2, num_prompt_tokens=len(prompt))
    assert_prompt(found, truth, prompt, 2)


def test_asking_changes_no_answer(runner: Runner, prompt: list[int]) -> None:
    sampling = SamplingParameters(do_sample=True, frequency_penalty=0.5, seed=3)
    for options in ({}, {"sampling": sampling}):
        silent = generate(runner, prompt, 10, chunk=7, **options)
        assert generate(runner, prompt, 10, chunk=7, num_top_tokens=4, prompt_logprobs=True, **options) == silent


def test_each_generated_token_has_its_alternatives(runner: Runner, prompt: list[int], embedded_model: Path) -> None:
    tokens = [token for result in execute(runner, prompt, 8, num_top_tokens=3) for token in result.tokens]
    truth = of_transformers(embedded_model, prompt + [token.token_id for token in tokens])
    for token, expected in zip(tokens, truth[len(prompt) - 1 :], strict=False):
        assert token.top_token_ids[0] == token.token_id
        assert token.top_logprobs[0] == token.logprob
        assert token.top_logprobs == pytest.approx(expected.topk(3).values.tolist(), abs=1e-3)


def test_sequences_of_one_step_each_get_what_they_asked_for(runner: Runner, prompt: list[int], truth: torch.Tensor) -> None:
    steps = [
        make_step(add={0: prompt}, work=[(0, 0, len(prompt))], prompt_logprobs=True, num_top_tokens=1),
        make_step(add={1: prompt[:9]}, work=[(1, 0, 9)]),
        make_step(add={2: prompt[:5]}, work=[(2, 0, 5)], prompt_logprobs=True, num_top_tokens=4),
        make_step(add={3: prompt[:1]}, work=[(3, 0, 1)], prompt_logprobs=True),
    ]
    together = make_step()
    for step in steps:
        together.MergeFrom(step)
    result = runner.execute(together)
    runner.reset()
    assert [(part.sequence_id, part.start) for part in result.prompts] == [(0, 1), (2, 1)]
    for part, num_tokens, num_top in zip(result.prompts, (len(prompt), 5), (1, 4), strict=True):
        found = (list(part.logprobs), list(part.top_token_ids), list(part.top_logprobs))
        assert_prompt(found, truth, prompt[:num_tokens], num_top)
    assert {token.sequence_id: len(token.top_token_ids) for token in result.tokens} == {0: 1, 1: 0, 2: 4, 3: 0}


def test_two_ranks_say_what_transformers_says(ranks: list[dict[str, Any]], uneven_bloom: Path) -> None:
    """With more top tokens than one rank has tokens of the vocabulary."""
    truth = of_transformers(uneven_bloom, PROMPT)
    for results in ranks:
        assert_prompt(results["prompt_logprobs"], truth, PROMPT, 200)


def test_of_equal_tokens_the_lowest_ids_come_first() -> None:
    logits = make_logits(2)
    logits[0, [290, 5, 80, 200]] = 40.0
    logits[1] = -3.0
    found = Logprobs(VOCAB_SIZE, Parallel()).of_tokens(logits, torch.tensor([5, 0]), 3)
    assert found.top_ids.tolist() == [[5, 80, 200], [0, 1, 2]]

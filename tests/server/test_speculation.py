"""Several tokens a step, guessed or decoded on its own, are the tokens of as many steps of one."""

from pathlib import Path

import pytest

from runner_steps import generate, make_runner, make_step
from text_generation_proto.shard_pb2 import SamplingParameters, Step, Token
from text_generation_server.runner import Runner

PROMPT = [1, 30, 31, 32, 33, 30, 31, 32, 33, 30, 31]
NUM_TOKENS = 40
HOT = {"do_sample": True, "seed": 7, "temperature": 0.1}  # not greedy, and still full of repetitions
CHOICES = {
    "greedy": SamplingParameters(),
    "sampled": SamplingParameters(**HOT, top_k=5),
    "penalized": SamplingParameters(**HOT, repetition_penalty=1.05, frequency_penalty=0.1),
    "watermarked": SamplingParameters(**HOT, watermark=True),
}


@pytest.fixture(scope="module")
def runner(random_bloom: Path) -> Runner:
    return make_runner(random_bloom, max_batch_tokens=64)


@pytest.fixture(autouse=True)
def forget(runner: Runner) -> None:
    runner.reset()


def speculate(runner: Runner, num_speculative: int, prompt: list[int] = PROMPT, **asked: object) -> tuple[list[Token], int]:
    """One sequence on its own: its tokens, and how many steps they took. The driver is a step ahead: it does not know where
    the sequence is."""
    step = make_step(add={0: prompt}, work=[(0, 0, len(prompt))], max_new_tokens=NUM_TOKENS, **asked)
    tokens, start, num_steps = list(runner.execute(step).tokens), len(prompt), 0
    while len(tokens) < NUM_TOKENS:
        step = Step(num_speculative=num_speculative)
        step.work.add(sequence_id=0, start=start, length=1, sample=True)
        result = runner.execute(step)
        assert not result.error
        tokens += result.tokens
        start += 1 + num_speculative
        num_steps += 1
    return tokens, num_steps


@pytest.mark.parametrize("choice", CHOICES)
def test_guesses_change_no_token_and_no_logprob(runner: Runner, choice: str) -> None:
    expected, expected_logprobs = generate(runner, PROMPT, NUM_TOKENS, sampling=CHOICES[choice])
    tokens, num_steps = speculate(runner, 4, sampling=CHOICES[choice], num_top_tokens=2)
    assert [token.token_id for token in tokens] == expected
    assert [token.logprob for token in tokens] == pytest.approx(expected_logprobs, abs=1e-4)
    assert all(len(token.top_token_ids) == 2 for token in tokens)
    if choice == "greedy":
        assert num_steps < 0.7 * NUM_TOKENS, "a random model repeats itself: some guesses must have been right"


def test_wrong_guesses_leave_nothing_behind(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = generate(runner, PROMPT, NUM_TOKENS)
    wrong = [(token_id + 1) % 100 for token_id in expected]
    monkeypatch.setattr("text_generation_server.prompt_lookup.PromptLookup.guess", lambda self, ids, count: wrong[:count])
    tokens, num_steps = speculate(runner, 3)
    assert [token.token_id for token in tokens] == expected and num_steps == NUM_TOKENS - 1


def test_a_prompts_last_token_alone_brings_one_token_however_right_a_guess_would_be(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a prefix that was cached. The driver's next step is under way, and begins right after that token."""
    expected, _ = generate(runner, PROMPT, NUM_TOKENS)
    runner.reset()
    end = len(PROMPT)
    monkeypatch.setattr(
        "text_generation_server.prompt_lookup.PromptLookup.guess",
        lambda self, ids, count: expected[len(ids) - end :][:count],
    )
    step = make_step(add={0: PROMPT}, work=[(0, 0, end - 1)], max_new_tokens=NUM_TOKENS)
    step.work[0].sample = False
    runner.execute(step)
    found = []
    for start in (end - 1, end):
        step = Step(num_speculative=3)
        step.work.add(sequence_id=0, start=start, length=1, sample=True)
        result = runner.execute(step)
        assert not result.error
        found.append([token.token_id for token in result.tokens])
    assert found == [expected[:1], expected[1:5]]


def test_no_more_tokens_come_than_were_asked_for_or_have_blocks(runner: Runner) -> None:
    tokens, _ = speculate(runner, 30)
    assert len(tokens) == NUM_TOKENS


def test_guesses_of_many_sequences_stay_within_the_budget(runner: Runner) -> None:
    """Three prompts of 11 tokens, and 62 guesses asked for: a step computes 64 positions at most."""
    runner.execute(make_step(add={n: PROMPT for n in range(3)}, work=[(n, 0, len(PROMPT)) for n in range(3)]))
    for _ in range(5):
        step = Step(num_speculative=62)
        for number in range(3):
            step.work.add(sequence_id=number, start=1000, length=1, sample=True)
        result = runner.execute(step)
        assert not result.error and {token.sequence_id for token in result.tokens} == {0, 1, 2}


def test_several_iterations_are_as_many_steps(runner: Runner) -> None:
    prompts = {0: PROMPT, 1: PROMPT[3:]}
    expected = {number: generate(runner, prompt, 11)[0] for number, prompt in prompts.items()}
    runner.reset()
    result = runner.execute(make_step(add=prompts, work=[(n, 0, len(prompt)) for n, prompt in prompts.items()]))
    found = {number: [token.token_id for token in result.tokens if token.sequence_id == number] for number in prompts}
    step = make_step(work=[(n, len(prompt), 1) for n, prompt in prompts.items()])
    step.num_iterations = 10
    result = runner.execute(step)
    for token in result.tokens:
        found[token.sequence_id].append(token.token_id)
    assert found == expected and result.forward_micros > 0


def test_iterations_past_a_sequences_blocks_are_refused_before_anything_is_computed(runner: Runner) -> None:
    runner.execute(make_step(add={0: PROMPT}, work=[(0, 0, len(PROMPT))]))
    step = make_step(work=[(0, len(PROMPT), 1)])
    step.num_iterations = 1000
    assert "is past its 8 blocks" in runner.execute(step).error


@pytest.mark.parametrize("fields", [{"num_iterations": 2, "num_speculative": 1}, {"num_iterations": 2}])
def test_iterations_are_for_plain_decoding(runner: Runner, fields: dict[str, int]) -> None:
    prompt = PROMPT[: 1 if len(fields) == 2 else 4]
    step = make_step(add={0: prompt}, work=[(0, 0, len(prompt))])
    step.MergeFrom(Step(**fields))
    assert "a step of several iterations" in runner.execute(step).error

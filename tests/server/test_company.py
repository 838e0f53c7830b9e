"""With our CPU kernels an answer is the same to the last bit, whatever else a step computes and in however many parts a prompt
comes."""

from pathlib import Path

import pytest

from processors import needs_cpu_kernels
from random_models import save_random_model
from runner_steps import generate, make_runner, make_step
from text_generation_server.attention.paged_cpu import CpuAttention
from text_generation_server.runner import Runner
from tiny_models import save_random_bloom

pytestmark = needs_cpu_kernels

PROMPTS = [[5, 17, 80, 3, *range(40, 75)], [9, 9, 250, 17], [*range(100, 190)], [44]]
NUM_TOKENS = 6


@pytest.fixture(scope="module", params=["bloom", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    if request.param == "bloom":
        return save_random_bloom(path, num_heads=4, head_dim=16)
    return save_random_model(path, "llama", head_dim=16)


def generate_together(runner: Runner, prompts: list[list[int]], chunk: int) -> list[tuple[list[int], list[float]]]:
    """All of them, each as far as it comes: prompts in chunks beside others that decode."""
    done, lengths = [0] * len(prompts), [len(prompt) for prompt in prompts]
    answers: list[tuple[list[int], list[float]]] = [([], []) for _ in prompts]
    while any(len(tokens) < NUM_TOKENS for tokens, _ in answers):
        step = make_step(add=dict(enumerate(prompts)) if not any(done) else None)
        for index, (tokens, _) in enumerate(answers):
            length = min(chunk, lengths[index] + len(tokens) - done[index])
            blocks = range(index * 8, index * 8 + 8) if done[index] == 0 else ()
            done[index] += length
            is_whole = done[index] >= lengths[index]
            start = done[index] - length
            step.work.add(sequence_id=index, start=start, length=length, block_ids=blocks, sample=is_whole)
        result = runner.execute(step)
        assert not result.error, result.error
        for token in result.tokens:
            answers[token.sequence_id][0].append(token.token_id)
            answers[token.sequence_id][1].append(token.logprob)
    runner.reset()
    return [(tokens[:NUM_TOKENS], logprobs[:NUM_TOKENS]) for tokens, logprobs in answers]


@pytest.mark.parametrize(
    ("dtype", "quantize"),
    [("float32", None), ("bfloat16", None), ("float16", None), ("float32", "bitsandbytes"), ("bfloat16", "int8-dynamic")],
)
def test_company_and_chunks_change_no_bit_of_an_answer(folder: Path, dtype: str, quantize: str | None) -> None:
    runner = make_runner(folder, dtype=dtype, quantize=quantize)
    assert isinstance(runner.attention, CpuAttention)
    alone = [generate(runner, prompt, NUM_TOKENS) for prompt in PROMPTS]
    assert [generate(runner, prompt, NUM_TOKENS, chunk=7) for prompt in PROMPTS] == alone
    for chunk in (512, 11):
        assert generate_together(runner, PROMPTS, chunk) == alone

"""A runner in this process, and the steps that a router would write to it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from text_generation_proto.shard_pb2 import Step, StepResult
from text_generation_server.batch import Batch
from text_generation_server.config import ShardConfig
from text_generation_server.models import ModelFolder
from text_generation_server.parallel import Parallel
from text_generation_server.runner import Runner

BLOCKS_PER_SEQUENCE = 8


def make_runner(folder: Path, parallel: Parallel | None = None, **options: Any) -> Runner:
    config = ShardConfig(str(folder), **({"dtype": "float32", "kv_cache_gib": 0.02} | options))
    return Runner(config, ModelFolder.read(folder), parallel or Parallel(), torch.device("cpu"))


def make_step(
    step_id: int = 0,
    *,
    add: dict[int, list[int]] | None = None,
    work: Sequence[tuple[int, int, int]] = (),
    drop: Sequence[int] = (),
    sample: bool = True,
    **asked: Any,
) -> Step:
    """`work` is (sequence id, start, length). Whoever is added and works gets blocks of its own at once; `asked` is what else
    a NewSequence says."""
    step = Step(id=step_id, drop=drop)
    for sequence_id, token_ids in (add or {}).items():
        step.add.add(id=sequence_id, token_ids=token_ids, **asked)
    for sequence_id, start, length in work:
        blocks = range(sequence_id * BLOCKS_PER_SEQUENCE, (sequence_id + 1) * BLOCKS_PER_SEQUENCE)
        given = blocks if sequence_id in (add or {}) else ()
        step.work.add(sequence_id=sequence_id, start=start, length=length, block_ids=given, sample=sample)
    return step


def generate(
    runner: Runner,
    prompt: list[int],
    num_tokens: int,
    chunk: int = 512,
    **asked: Any,
) -> tuple[list[int], list[float]]:
    """One sequence on its own, its prompt in chunks: its tokens and their log-probabilities."""
    results = execute(runner, prompt, num_tokens, chunk, **asked)
    tokens = [token for result in results for token in result.tokens]
    return [token.token_id for token in tokens], [token.logprob for token in tokens]


def execute(runner: Runner, prompt: list[int], num_tokens: int, chunk: int = 512, **asked: Any) -> list[StepResult]:
    """One sequence on its own, its prompt in chunks: the results of its steps."""
    start, num_sampled, results = 0, 0, []
    while num_sampled < num_tokens:
        length = min(chunk, len(prompt) + num_sampled - start)
        new = {0: prompt} if start == 0 else None
        is_last = start + length >= len(prompt)
        result = runner.execute(make_step(add=new, work=[(0, start, length)], sample=is_last, **asked))
        assert not result.error, result.error
        num_sampled += len(result.tokens)
        results.append(result)
        start += length
    runner.reset()
    return results


def score_prompt(
    runner: Runner, prompt: list[int], num_top_tokens: int = 0, chunk: int = 512, **asked: Any
) -> tuple[list[float], list[int], list[float]]:
    """How likely each token of a prompt but the first is, and the top tokens of all of them."""
    asked |= {"prompt_logprobs": True, "num_top_tokens": num_top_tokens}
    parts = [part for result in execute(runner, prompt, 1, chunk, **asked) for part in result.prompts]
    assert [part.start for part in parts] == list(range(1, asked.get("num_prompt_tokens", len(prompt)), chunk))
    logprobs = [logprob for part in parts for logprob in part.logprobs]
    top_ids = [token_id for part in parts for token_id in part.top_token_ids]
    return logprobs, top_ids, [logprob for part in parts for logprob in part.top_logprobs]


@torch.inference_mode()
def all_logits(runner: Runner, token_ids: list[int]) -> torch.Tensor:
    """[num_tokens, vocab_size_local]: what this rank says after each token of one sequence."""
    step = make_step(add={0: token_ids}, work=[(0, 0, len(token_ids))])
    step.add[0].prompt_logprobs = True  # so that all rows are wanted
    works = runner.sequences.apply(step)
    batch = Batch.of(works, runner.block_tables)
    logits = runner.model.logits(runner.model.forward(batch.token_ids, batch.context, runner.attention))
    runner.reset()
    return logits

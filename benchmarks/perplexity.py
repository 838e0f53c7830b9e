"""Perplexity: how well a model expects a text, and texts that a model wrote itself to try that on.

In: a Runner and windows of token ids. Out: one number, from the served model's own forward: its layers, its paged cache,
its logits at all positions.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from decode_loop import DecodeLoop

from text_generation_proto.shard_pb2 import SamplingParameters, Step
from text_generation_server.batch import Batch
from text_generation_server.runner import Runner

WINDOW_TOKENS = 512


def perplexity(runner: Runner, windows: Sequence[Sequence[int]]) -> float:
    """Of each window's tokens after its first, each given those before it in the window."""
    losses = [_losses(runner, window) for window in windows if len(window) > 1]
    return math.exp(torch.cat(losses).mean().item())


def windows_of(token_ids: Sequence[int]) -> list[Sequence[int]]:
    return [token_ids[start : start + WINDOW_TOKENS] for start in range(0, len(token_ids), WINDOW_TOKENS)]


def sample_windows(runner: Runner, num_windows: int, num_tokens: int, first_token_id: int) -> list[list[int]]:
    """Texts that the model draws with fixed seeds, at temperature 1 and from its whole vocabulary."""
    loop = DecodeLoop(runner, [[first_token_id]] * num_windows, num_tokens, SamplingParameters(do_sample=True, seed=0))
    while len(loop.token_ids[0]) < num_tokens:
        loop.step()
    return loop.token_ids


@torch.inference_mode()
def _losses(runner: Runner, window: Sequence[int]) -> torch.Tensor:
    """[num_tokens - 1]: the negative log probability of each token but the first."""
    runner.reset()
    step = Step()
    step.add.add(id=0, token_ids=window, prompt_logprobs=True)
    blocks = range(-(-len(window) // runner.block_size))
    step.work.add(sequence_id=0, start=0, length=len(window), block_ids=blocks)
    batch = Batch.of(runner.sequences.apply(step), runner.block_tables)
    logits = runner.model.logits(runner.model.forward(batch.token_ids, batch.context, runner.attention))
    return F.cross_entropy(logits[:-1], batch.token_ids[1:], reduction="none").cpu()

"""Capacity: how much a step computes and a block holds where nothing else is said, and the largest step there can be.

In: a model and its device. Out: numbers of tokens, and a Step.
"""

import torch

from text_generation_proto.shard_pb2 import Step
from text_generation_server.models.contract import Model

CPU_BATCH_TOKENS = 512
CUDA_BATCH_TOKENS = 4096
WHOLE_PROMPT_TOKENS = 4096  # of models that take no parts of prompts, where nothing else is said
STATE_BLOCK_SIZE = 256  # of models with a state beside their blocks: a sequence has one at least, and no prefix is shared


def default_batch_tokens(model: Model, device: torch.device) -> int:
    default = CUDA_BATCH_TOKENS if device.type == "cuda" else CPU_BATCH_TOKENS
    if model.chunked_prefill:
        return default
    return max(default, min(model.config.max_positions, WHOLE_PROMPT_TOKENS))


def fitting_block_size(model: Model, wanted: int, max_positions: int) -> int:
    """In tokens."""
    if model.state_bytes == 0:
        return wanted
    return STATE_BLOCK_SIZE if model.kv_shapes else max_positions


def full_step(max_batch_tokens: int, max_positions: int, block_size: int) -> Step:
    """Prompts that fill a step, as long as the model has positions."""
    step, first_block = Step(), 0
    for number, start in enumerate(range(0, max_batch_tokens, max_positions)):
        length = min(max_positions, max_batch_tokens - start)
        blocks = range(first_block, first_block - (-length // block_size))
        first_block = blocks.stop
        step.add.add(id=number, token_ids=[0] * length, prompt_logprobs=True, num_top_tokens=1)
        step.work.add(sequence_id=number, start=0, length=length, block_ids=blocks, sample=True)
    return step

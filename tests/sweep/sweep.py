"""One model type after the other: a small random checkpoint, served by real shards, answers as transformers' `generate` does.

In: a model type. Out: how it was served, or why not. Two prompts of different lengths, the first one in chunks where the
model takes chunks, the second one joining while the first decodes; greedy, so that every token can be compared.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from quick_shards import QuickShards
from reference import Reference, compare

from random_models import causal_types, seq2seq_types
from runner_steps import make_step
from text_generation_proto import shard_pb2_grpc
from text_generation_proto.shard_pb2 import DescribeRequest, DescribeResponse, Step
from text_generation_server.models import ModelFolder

PROMPT = [1, *range(40, 60), 9, 9, 250, 17]
OTHER = [1, 77, 78, 79, 80]
NUM_TOKENS = 12
CHUNK = 7
# Served and right, but on some machines an answer of theirs is near enough to a tie for another order of sums to show.
TOLERANCES = {"youtu": 1e-2}
# With its cache transformers answers otherwise than without, and the server has none for them either.
WITHOUT_CACHE = ("blt", "cpmant")


@dataclasses.dataclass(frozen=True)
class Served:
    path: str  # through the server: the name of its Way
    is_paged: bool  # keys and values in blocks, a prompt in chunks, prefixes shared
    weight_bytes: int  # of rank 0


def all_types() -> list[tuple[str, bool]]:
    """(model type, whether as a sequence-to-sequence model)."""
    return [(name, False) for name in causal_types()] + [(name, True) for name in seq2seq_types()]


def serve_and_compare(model: Path, folder: Path, world_size: int, seq2seq: bool, model_type: str) -> Served:
    """
    Raises:
        ModelError, ShardsEnded: the server refuses the model, with its reason.
        AssertionError: an answer is not that of transformers.
    """
    way = ModelFolder.read(model).way
    path = "native" if way.is_native else way.name.lower()
    folder.mkdir()
    reference = Reference(model, seq2seq, stops=False)
    use_cache = model_type not in WITHOUT_CACHE
    answers = [reference.generate(prompt, NUM_TOKENS, use_cache) for prompt in (PROMPT, OTHER)]
    with QuickShards(model, folder, world_size) as shards:
        description: DescribeResponse = shards[0].Describe(DescribeRequest())
        tokens = _run(shards, CHUNK if description.chunked_prefill else len(PROMPT))
    for answer, found in zip(answers, tokens, strict=True):
        token_ids, logprobs = zip(*found, strict=True)
        compare(answer, list(token_ids), list(logprobs), TOLERANCES.get(model_type, 1e-3))
    distinct = {token_id for answer in answers for token_id in answer.token_ids}
    assert len(distinct) > 2, "the reference repeats itself, which shows nothing"
    is_paged = description.chunked_prefill and description.prefix_cache
    return Served(path, is_paged, description.weight_bytes)


def answers_quantized(model: Path, folder: Path, weight_bytes: int) -> bool:
    """Whether the model answers in 4 bits, with matrices smaller than `weight_bytes`."""
    folder.mkdir()
    with QuickShards(model, folder, 1, "--quantize", "bitsandbytes-nf4") as shards:
        description: DescribeResponse = shards[0].Describe(DescribeRequest())
        tokens = _run(shards, CHUNK if description.chunked_prefill else len(PROMPT))
    return description.weight_bytes < 0.9 * weight_bytes and [len(found) for found in tokens] == [NUM_TOKENS] * 2


def _run(shards: list[shard_pb2_grpc.ShardStub], chunk: int) -> list[list[tuple[int, float]]]:
    """Each prompt's tokens and their log-probabilities."""
    steps = list(_steps(chunk))
    streams = [shard.Execute(iter(steps)) for shard in shards]
    tokens: list[list[tuple[int, float]]] = [[], []]
    for result in streams[0]:
        assert not result.error, result.error
        for token in result.tokens:
            tokens[token.sequence_id].append((token.token_id, token.logprob))
    return tokens


def _steps(chunk: int) -> Iterator[Step]:
    """The second prompt joins when the first has its first token, and goes on for a step alone."""
    for start in range(0, len(PROMPT), chunk):
        end = min(start + chunk, len(PROMPT))
        new = {0: PROMPT} if start == 0 else None
        yield make_step(start, add=new, work=[(0, start, end - start)], sample=end == len(PROMPT))
    yield make_step(100, add={1: OTHER}, work=[(0, len(PROMPT), 1), (1, 0, len(OTHER))])
    for done in range(NUM_TOKENS - 2):
        yield make_step(101 + done, work=[(0, len(PROMPT) + 1 + done, 1), (1, len(OTHER) + done, 1)])
    yield make_step(200, work=[(1, len(OTHER) + NUM_TOKENS - 2, 1)])

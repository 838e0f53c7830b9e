"""Whatever the batch, the budget, the cache and the ranks: greedy answers are those of transformers' generate."""

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from reference import Answer, Reference, compare

from event_reader import EventReader
from shard_processes import ShardProcesses
from text_generation_router.config import RouterConfig
from text_generation_router.engine import Engine
from text_generation_router.metrics import Metrics
from text_generation_router.sequence import Request, SamplingParameters, Sequence
from text_generation_router.stream import TokenEvent
from text_generation_router.tokenizer import Tokenizer

NUM_REQUESTS = 32
FEW_BLOCKS = "0.0085"  # GiB of KV cache: about 55 blocks of the embedded model, not enough for two of the longest requests
MANY_BLOCKS = "0.25"


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    """Prompts of 1 to 400 tokens. Half of them share a beginning, so that the prefix cache has something to find;
    every fourth is short with a long answer, so that sequences that started together outgrow few blocks.
    """
    chance = random.Random(0)
    shared = [chance.randrange(4, 2000) for _ in range(400)]
    made = []
    for index in range(NUM_REQUESTS):
        grows = index % 4 == 2
        length = 1 if index == 0 else 400 if index == 1 else chance.randrange(1, 40 if grows else 400)
        num_shared = chance.randrange(length + 1) if index % 2 else 0
        prompt = shared[:num_shared] + [chance.randrange(4, 2000) for _ in range(length - num_shared)]
        made.append(Request(prompt, max_new_tokens=chance.randrange(150, 300) if grows else chance.randrange(1, 100)))
    return made


@pytest.fixture(scope="module")
def answers(embedded_model: Path, requests: list[Request]) -> list[Answer]:
    reference = Reference(embedded_model)
    return [reference.generate(request.prompt_token_ids, request.max_new_tokens) for request in requests]


@pytest.fixture(scope="module")
def groups(shard_processes: ShardProcesses, embedded_model: Path) -> dict[tuple[int, str], str]:
    """Socket prefixes by world size and KV memory. A rank of two holds half of each block."""
    return {
        (world_size, gib): shard_processes.start(
            embedded_model, world_size, "--dtype", "float32", "--kv-cache-gib", str(float(gib) / world_size)
        )
        for world_size in (1, 2)
        for gib in (FEW_BLOCKS, MANY_BLOCKS)
    }


def combinations() -> Iterator[Any]:
    """Budget, prefix caching and blocks. Four of the eight have every two settings together once; the others take long."""
    for budget, prefix_caching, gib in itertools.product((16, 512), (True, False), (FEW_BLOCKS, MANY_BLOCKS)):
        is_needed = (budget == 512) ^ prefix_caching ^ (gib == MANY_BLOCKS)
        words = (str(budget), "prefix cache" if prefix_caching else "no prefix cache", "few" if gib == FEW_BLOCKS else "many")
        yield pytest.param(budget, prefix_caching, gib, id=" ".join(words), marks=[] if is_needed else pytest.mark.slow)


@pytest.mark.parametrize(("budget", "prefix_caching", "gib"), combinations())
@pytest.mark.parametrize("world_size", [1, 2])
async def test_a_mixed_batch_answers_like_each_request_alone(
    groups: dict[tuple[int, str], str],
    embedded_model: Path,
    requests: list[Request],
    answers: list[Answer],
    world_size: int,
    gib: str,
    budget: int,
    prefix_caching: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = RouterConfig(
        str(embedded_model),
        shard_uds_path=groups[world_size, gib],
        max_batch_prefill_tokens=budget,
        prefix_caching=prefix_caching,
    )
    async with running_engine(config) as engine:
        results = await asyncio.gather(*(submit_later(engine, request) for request in requests))
        num_ties = sum(
            compare(answer, [e.token_id for e in events], [e.logprob for e in events])
            for answer, (_, events) in zip(answers, results, strict=True)
        )
        sequences = [sequence for sequence, _ in results]
        num_preemptions = sum(sequence.num_preemptions for sequence in sequences)
        num_cached = sum(sequence.num_cached_tokens for sequence in sequences)
        with capsys.disabled():
            print(f"\nties={num_ties} of {NUM_REQUESTS} preemptions={num_preemptions} cached_tokens={num_cached}", end=" ")
        assert num_ties <= 2
        assert (num_cached > 0) == prefix_caching
        if gib == FEW_BLOCKS and budget == 512:
            assert num_preemptions > 0, "the test wants preemption to happen"


@pytest.mark.parametrize("world_size", [1, 2])
async def test_a_seeded_request_says_the_same_alone_and_in_a_full_batch(
    groups: dict[tuple[int, str], str], embedded_model: Path, requests: list[Request], world_size: int
) -> None:
    sampling = SamplingParameters(do_sample=True, temperature=0.8, top_k=50, top_p=0.9, repetition_penalty=1.1, seed=42)
    seeded = Request(requests[5].prompt_token_ids, max_new_tokens=30, sampling=sampling)
    config = RouterConfig(str(embedded_model), shard_uds_path=groups[world_size, MANY_BLOCKS])
    async with running_engine(config) as engine:
        _, alone = await submit_later(engine, seeded)
        crowd = [submit_later(engine, request) for request in requests[:16]]
        (_, crowded), *_ = await asyncio.gather(submit_later(engine, seeded), *crowd)
    assert [event.token_id for event in crowded] == [event.token_id for event in alone]
    assert len(set(event.token_id for event in alone)) > 5


@contextlib.asynccontextmanager
async def running_engine(config: RouterConfig) -> AsyncIterator[Engine]:
    """Like the router's own, without HTTP. The shards take one driver at a time, so the last one must be gone first."""
    tokenizer = Tokenizer(num_workers=1)
    tokenizer.load(Path(config.tokenizer_path or ""))
    engine = Engine(config, tokenizer, Metrics())
    await engine.start()
    try:
        async with asyncio.timeout(60):
            while engine.status != "ready":
                await asyncio.sleep(0.01)
        yield engine
    finally:
        await engine.stop(grace_seconds=0)
        tokenizer.close()


async def submit_later(engine: Engine, request: Request) -> tuple[Sequence, list[TokenEvent]]:
    await asyncio.sleep(random.Random(len(request.prompt_token_ids)).random())
    reader = EventReader(engine, request)
    try:
        return reader.sequence, [event async for event in reader]
    finally:
        reader.cancel()

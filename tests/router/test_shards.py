"""ShardGroup against FakeShards: what is written to the ranks, what comes back, and what is said when one is gone."""

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator

import pytest

from fakes import (
    EOS,
    FORWARD_MICROS,
    LOGPROB,
    SAMPLE_MICROS,
    FakeShard,
    FakeShards,
    Script,
    next_token,
    prompt_logprob,
    top_tokens,
    until,
)
from text_generation_proto import shard_pb2
from text_generation_router.scheduler import Step, Work
from text_generation_router.sequence import PromptScore, Request, SamplingParameters, Sequence
from text_generation_router.shards import SampledToken, ShardGroup, ShardsLost, StepResult

PROMPT = [10, 11, 12, 13, 14, 15]


@pytest.fixture
def uds_path(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "shard")


@contextlib.asynccontextmanager
async def connected(uds_path: str) -> AsyncIterator[ShardGroup]:
    news = asyncio.Event()
    group = await ShardGroup.connect(uds_path, news.set)
    await group.start()
    try:
        yield group
    finally:
        await group.close()


async def next_results(group: ShardGroup, count: int = 1) -> list[StepResult]:
    results: list[StepResult] = []
    async with asyncio.timeout(10):
        while len(results) < count:
            results += group.take_results()
            await asyncio.sleep(0.001)
    return results


def first_step(sampling: SamplingParameters | None = None, **fields: object) -> Step:
    sequence = Sequence(3, Request(PROMPT, 9, sampling or SamplingParameters(), **fields))
    return Step(0, add=[sequence], work=[Work(sequence, 0, 6, [4, 1], True, 0)])


async def test_the_model_is_what_rank_0_says_with_the_least_that_any_rank_has(uds_path):
    small = FakeShard(uds_path, 1, 2, Script(num_blocks=30, max_batch_tokens=20))
    async with FakeShards(uds_path, 2, Script(num_blocks=40, max_batch_tokens=50)) as shards:
        await shards.ranks[1].stop()
        await small.start()
        async with connected(uds_path) as group:
            model = group.model
        await small.stop()
    assert (model.num_blocks, model.max_batch_tokens, model.num_shards) == (30, 20, 2)
    assert (model.model_id, model.model_type, model.dtype, model.device) == ("fake", "bloom", "float32", "cpu")
    assert (model.quantize, model.eos_token_ids) == (None, {EOS})
    assert (model.block_size, model.max_positions, model.vocab_size) == (4, 128, 340)
    assert model.chunked_prefill and model.prefix_cache


async def test_a_step_reaches_every_rank_as_it_was_made_and_rank_0_answers(uds_path):
    async with FakeShards(uds_path, 2) as shards, connected(uds_path) as group:
        group.send(first_step())
        (result,) = await next_results(group)
        await until(lambda: shards.ranks[1].streams[0].steps)
        assert shards.ranks[0].streams[0].steps == shards.ranks[1].streams[0].steps
        (message,) = shards.steps
    assert (result.step_id, result.error) == (0, "")
    assert (result.tokens, result.prompt_scores) == ({3: [SampledToken(next_token(PROMPT), LOGPROB, [])]}, {})
    assert (result.forward_seconds, result.sample_seconds) == pytest.approx((FORWARD_MICROS / 1e6, SAMPLE_MICROS / 1e6))
    assert (message.id, list(message.drop), list(message.add[0].token_ids)) == (0, [], PROMPT)
    assert (message.add[0].num_prompt_tokens, message.add[0].num_top_tokens, message.add[0].prompt_logprobs) == (6, 0, False)
    assert message.work == [shard_pb2.Work(sequence_id=3, start=0, length=6, block_ids=[4, 1], sample=True)]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (
            SamplingParameters(True, 0.5, 7, 0.25, 0.75, 1.5, -0.5, 0.25, {5: -100.0, 7: 1.5}, True, 2**63),
            shard_pb2.SamplingParameters(
                do_sample=True,
                temperature=0.5,
                top_k=7,
                top_p=0.25,
                typical_p=0.75,
                repetition_penalty=1.5,
                frequency_penalty=-0.5,
                presence_penalty=0.25,
                logit_bias={5: -100.0, 7: 1.5},
                watermark=True,
                seed=2**63,
            ),
        ),
        (
            SamplingParameters(),
            shard_pb2.SamplingParameters(temperature=1.0, repetition_penalty=1.0, frequency_penalty=0.0, presence_penalty=0.0),
        ),
    ],
)
async def test_sampling_parameters_arrive_and_filters_that_are_off_are_absent(uds_path, sampling, expected):
    async with FakeShards(uds_path) as shards, connected(uds_path) as group:
        group.send(first_step(sampling))
        await next_results(group)
        assert shards.steps[0].add[0].sampling == expected


async def test_alternatives_and_the_prompts_scores_come_back_by_sequence_and_position(uds_path):
    async with FakeShards(uds_path) as shards, connected(uds_path) as group:
        group.send(first_step(num_top_tokens=2, prompt_logprobs=True))
        (result,) = await next_results(group)
        added = shards.steps[0].add[0]
    assert (added.num_top_tokens, added.prompt_logprobs) == (2, True)
    assert result.tokens[3][0].top_tokens == top_tokens(next_token(PROMPT), 2)
    scores = {p: PromptScore(prompt_logprob(p), top_tokens(PROMPT[p], 2, prompt_logprob(p))) for p in range(1, len(PROMPT))}
    assert result.prompt_scores == {3: scores}


async def test_a_sequence_that_comes_again_says_which_of_its_tokens_are_the_prompt(uds_path):
    step = first_step()
    step.add[0].token_ids.append(16)
    async with FakeShards(uds_path) as shards, connected(uds_path) as group:
        group.send(Step(0, add=step.add, work=[Work(step.add[0], 0, 7, [4, 1], True, 1)]))
        await next_results(group)
        added = shards.steps[0].add[0]
    assert (list(added.token_ids), added.num_prompt_tokens) == ([*PROMPT, 16], 6)


async def test_steps_can_be_sent_ahead_and_results_come_in_their_order(uds_path):
    async with FakeShards(uds_path) as shards, connected(uds_path) as group:
        step = first_step()
        sequence = step.add[0]
        group.send(step)
        group.send(Step(1, work=[Work(sequence, 6, 1, [], True, 0)]))
        group.send(Step(2, drop=[3]))
        results = await next_results(group, 3)
        assert [result.step_id for result in results] == [0, 1, 2]
        second = SampledToken(next_token([*PROMPT, next_token(PROMPT)]), LOGPROB, [])
        assert results[1].tokens == {3: [second]} and results[2].tokens == {}
        assert list(shards.steps[2].drop) == [3]


async def test_a_failed_step_is_one_result_although_every_rank_reports_it(uds_path):
    async with FakeShards(uds_path, 3, Script(fails_on=lambda step: step.id == 0)) as shards, connected(uds_path) as group:
        group.send(first_step())
        group.send(Step(1, drop=[3]))
        await until(lambda: all(shard.streams and shard.streams[0].computed == [0, 1] for shard in shards.ranks))
        results = await next_results(group, 2)
        await asyncio.sleep(0.02)
        assert group.take_results() == []
    assert [(result.step_id, result.error) for result in results] == [(0, "RuntimeError: scripted failure"), (1, "")]


async def test_shards_that_are_not_there_are_named(uds_path):
    with pytest.raises(ShardsLost, match=r"shard rank 0 does not answer at unix:.*shard-0"):
        await ShardGroup.connect(uds_path)


async def test_a_rank_that_is_not_there_is_named(uds_path):
    async with FakeShards(uds_path, 2) as shards:
        await shards.ranks[1].stop()
        with pytest.raises(ShardsLost, match=r"shard rank 1 does not answer at unix:.*shard-1"):
            await ShardGroup.connect(uds_path)


@pytest.mark.parametrize("rank", [0, 1])
async def test_a_rank_that_dies_is_named_and_what_came_before_is_not_lost(uds_path, rank):
    async with FakeShards(uds_path, 2) as shards, connected(uds_path) as group:
        group.send(first_step())
        await until(lambda: all(shard.streams and shard.streams[0].computed for shard in shards.ranks))
        await asyncio.sleep(0.01)
        await shards.ranks[rank].stop()
        assert [result.step_id for result in await next_results(group)] == [0]
        with pytest.raises(ShardsLost, match=f"shard rank {rank} is gone"):
            await next_results(group)
        group.send(Step(1, drop=[3]))  # harmless
        with pytest.raises(ShardsLost, match=f"shard rank {rank} is gone"):
            group.take_results()


async def test_the_reason_that_a_shard_gives_is_passed_on(uds_path):
    async with FakeShards(uds_path, script=Script(breaks_on=lambda step: True)), connected(uds_path) as group:
        group.send(first_step())
        with pytest.raises(ShardsLost, match="shard rank 0 is gone: scripted end in step 0"):
            await next_results(group)


async def test_news_are_told_for_results_and_for_losses(uds_path):
    news: list[int] = []
    async with FakeShards(uds_path) as shards:
        group = await ShardGroup.connect(uds_path, lambda: news.append(1))
        await group.start()
        group.send(first_step())
        await until(lambda: news)
        news.clear()
        await shards.stop()
        await until(lambda: news)
        news.clear()
        assert len(group.take_results()) == 1
        assert news, "whoever took the last results must be told to look again"
        with pytest.raises(ShardsLost):
            group.take_results()
        await group.close()


async def test_closing_ends_the_shards_streams(uds_path):
    async with FakeShards(uds_path, 2) as shards:
        async with connected(uds_path) as group:
            group.send(first_step())
            await next_results(group)
        await until(lambda: not any(shard.streams[0].is_open for shard in shards.ranks))


async def test_text_goes_to_every_rank_and_comes_back_from_rank_0(uds_path):
    request = shard_pb2.GenerateRequest(inputs=["one", "two"], max_new_tokens=5, stop=["."])
    async with FakeShards(uds_path, 2) as shards:
        group = await ShardGroup.connect(uds_path)
        responses = [(response.index, response.generated_text) async for response in group.generate(request)]
        assert [shard.generate_requests for shard in shards.ranks] == [[request], [request]]
        await group.close()
    assert responses == [(0, "one"), (1, "two")]


async def test_a_text_request_that_the_shards_refuse_says_why(uds_path):
    async with FakeShards(uds_path, 2):
        group = await ShardGroup.connect(uds_path)
        with pytest.raises(ShardsLost, match="there are no inputs"):
            _ = [response async for response in group.generate(shard_pb2.GenerateRequest())]
        await group.close()

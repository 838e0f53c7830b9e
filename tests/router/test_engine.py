"""The engine against FakeShards: what a client's stream gets, and what the shards are told, come what may."""

import asyncio
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import AsyncIterator, Iterator

import pytest

import fake_engine
import tiny_tokenizers
from event_reader import EventReader
from fakes import (
    EOS,
    FORWARD_MICROS,
    LOGPROB,
    SAMPLE_MICROS,
    FakeShards,
    Script,
    answer,
    prompt_logprob,
    top_tokens,
    until,
)
from text_generation_router.config import RouterConfig
from text_generation_router.engine import Engine, Place
from text_generation_router.errors import GenerationFailed, NotReady, Overloaded
from text_generation_router.limits import limits
from text_generation_router.metrics import Metrics
from text_generation_router.pace import MAX_ITERATIONS
from text_generation_router.sequence import PromptScore, Request
from text_generation_router.shards import ShardGroup, StepResult
from text_generation_router.stream import Mailbox, TokenEvent
from text_generation_router.tokenizer import Tokenizer

PROMPT = [11, 12, 13, 14, 15, 16, 17, 18, 19]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizers.save(tiny_tokenizers.byte_level(), folder)
    tokenizer = Tokenizer(num_workers=1)
    tokenizer.load(folder)
    yield tokenizer
    tokenizer.close()


@pytest.fixture
def uds_path(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "shard")


@contextlib.asynccontextmanager
async def driving(
    uds_path: str, tokenizer: Tokenizer, metrics: Metrics | None = None, **options: object
) -> AsyncIterator[Engine]:
    """An engine on whatever listens at `uds_path`."""
    engine = Engine(RouterConfig("unused", shard_uds_path=uds_path, **options), tokenizer, metrics or Metrics())
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop(0)


@contextlib.asynccontextmanager
async def serving(
    uds_path: str, tokenizer: Tokenizer, script: Script, world_size: int = 1, **options: object
) -> AsyncIterator[tuple[Engine, FakeShards]]:
    async with FakeShards(uds_path, world_size, script) as shards, driving(uds_path, tokenizer, **options) as engine:
        await until(lambda: engine.status == "ready")
        yield engine, shards


def submit(engine: Engine, prompt: list[int], max_new_tokens: int, **fields: object) -> EventReader:
    return EventReader(engine, Request(prompt, max_new_tokens, **fields))


async def read(stream: EventReader) -> list[TokenEvent]:
    try:
        async with asyncio.timeout(10):
            return [event async for event in stream]
    finally:
        stream.cancel()


async def read_ids(stream: EventReader) -> list[int]:
    return [event.token_id for event in await read(stream)]


async def first_tokens(stream: EventReader, count: int) -> list[int]:
    """Takes `count` events off a stream that goes on."""
    token_ids = []
    async for event in stream:
        token_ids.append(event.token_id)
        if len(token_ids) == count:
            break
    return token_ids


def text_of(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    detokenizer = tokenizer.detokenizer()
    return "".join(map(detokenizer.push, token_ids))


def values(metrics: Metrics) -> dict[str, float]:
    """Every series with its labels, as Prometheus would read it."""
    lines = metrics.render().decode().splitlines()
    return {series: float(value) for series, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


async def test_a_stream_gives_every_token_with_its_text_and_the_last_one_with_the_whole(uds_path, tokenizer):
    async with serving(uds_path, tokenizer, Script()) as (engine, _):
        events = await read(submit(engine, PROMPT, 7))
    expected = answer(PROMPT, 7)
    assert [event.token_id for event in events] == expected
    assert [event.finish_reason for event in events] == [None] * 6 + ["length"]
    assert "".join(event.text for event in events) == events[-1].generated_text == text_of(tokenizer, expected)
    assert {event.logprob for event in events} == {LOGPROB}
    assert not any(event.special or event.generated_text for event in events[:-1])


async def test_many_requests_with_common_beginnings_get_each_its_own_answer(uds_path, tokenizer):
    requests = [(PROMPT[: 1 + n % 9] + [30 + n % 4] * (n % 6), 1 + 3 * n % 17) for n in range(24)]
    async with serving(uds_path, tokenizer, Script(max_batch_tokens=12)) as (engine, shards):
        texts = await asyncio.gather(*(read_ids(submit(engine, *request)) for request in requests))
        sampled = [shards.num_sampled(sequence_id) for sequence_id in range(24)]
    assert texts == [answer(*request) for request in requests]
    assert sampled == [max_new_tokens for _, max_new_tokens in requests]  # a length limit never overshoots


async def test_when_blocks_run_out_a_request_pauses_and_its_text_is_the_same(uds_path, tokenizer):
    requests = [([20 + n] * 5, 15) for n in range(6)]
    async with serving(uds_path, tokenizer, Script(num_blocks=9, max_positions=36)) as (engine, shards):
        streams = [submit(engine, *request) for request in requests]
        texts = await asyncio.gather(*map(read_ids, streams))
        assert sum(len(step.add) for step in shards.steps) > 6, "the test means to run out of blocks"
    assert texts == [answer(*request) for request in requests]
    assert streams[0].sequence.num_preemptions == 0


async def test_the_shards_have_the_next_step_before_they_answer_the_last(uds_path, tokenizer):
    permits = asyncio.Semaphore(0)
    async with serving(uds_path, tokenizer, Script(permits=permits)) as (engine, shards):
        reading = asyncio.create_task(read_ids(submit(engine, PROMPT, 5)))
        for num_answered in range(4):
            await until(lambda: len(shards.steps) == num_answered + 2)  # noqa: B023
            assert len(shards.streams[0].computed) == num_answered
            assert [(work.start, work.length) for work in shards.steps[-1].work] == [(len(PROMPT) + num_answered, 1)]
            permits.release()
        permits.release()
        assert await reading == answer(PROMPT, 5)


async def test_no_more_than_two_steps_are_under_way(uds_path, tokenizer):
    async with serving(uds_path, tokenizer, Script(permits=asyncio.Semaphore(0))) as (engine, shards):
        streams = [submit(engine, PROMPT, 20) for _ in range(3)]
        await until(lambda: len(shards.steps) == 2)
        await asyncio.sleep(0.02)
        assert len(shards.steps) == 2
        for stream in streams:
            stream.cancel()


async def test_an_end_of_sequence_token_ends_and_the_one_sampled_after_it_is_thrown_away(uds_path, tokenizer):
    async with serving(uds_path, tokenizer, Script(eos_length=12)) as (engine, shards):
        stream = submit(engine, PROMPT, 30)
        events = await read(stream)
        await until(lambda: shards.has_dropped(stream.sequence.id))
        sampled = shards.num_sampled(stream.sequence.id)
    assert [event.token_id for event in events] == answer(PROMPT, 30, eos_length=12)
    assert (events[-1].token_id, events[-1].finish_reason, events[-1].special) == (EOS, "eos_token", True)
    assert events[-1].text == "" and events[-1].generated_text == text_of(tokenizer, answer(PROMPT, 3))
    assert sampled == len(events) + 1


async def test_a_stop_sequence_ends_the_stream_and_the_shards_work(uds_path, tokenizer):
    text = text_of(tokenizer, answer(PROMPT, 40))
    stop = text[9:11]  # its end is the 11th character, and each token is one
    async with serving(uds_path, tokenizer, Script(step_seconds=0.001)) as (engine, shards):
        stream = submit(engine, PROMPT, 40, stop=(stop,))
        await until(lambda: shards.has_dropped(stream.sequence.id))  # before the reader has read anything
        sampled = shards.num_sampled(stream.sequence.id)
        events = await read(stream)
    expected = text[: text.index(stop) + 2]
    assert (events[-1].finish_reason, events[-1].generated_text) == ("stop_sequence", expected)
    assert "".join(event.text for event in events) == expected
    assert sampled < len(expected) + 3


async def test_a_stop_sequence_that_is_not_to_be_kept_is_never_seen(uds_path, tokenizer):
    text = text_of(tokenizer, answer(PROMPT, 40))
    stop = text[9:13]
    async with serving(uds_path, tokenizer, Script()) as (engine, _):
        events = await read(submit(engine, PROMPT, 40, stop=(stop,), keep_stop=False))
    expected = text[: text.index(stop)]
    assert (events[-1].finish_reason, events[-1].generated_text) == ("stop_sequence", expected)
    assert "".join(event.text for event in events) == expected


async def test_text_that_only_looked_like_the_beginning_of_a_stop_sequence_comes_with_the_last_token(uds_path, tokenizer):
    text = text_of(tokenizer, answer(PROMPT, 8))
    async with serving(uds_path, tokenizer, Script()) as (engine, _):
        events = await read(submit(engine, PROMPT, 8, stop=(text[-2:] + "\n",), keep_stop=False))
    assert [event.text for event in events[-2:]] == ["", text[-2:]]
    assert (events[-1].finish_reason, events[-1].generated_text) == ("length", text)


async def test_every_token_comes_with_as_many_alternatives_as_were_asked_for(uds_path, tokenizer):
    async with serving(uds_path, tokenizer, Script(), world_size=2) as (engine, _):
        plain, rich = submit(engine, PROMPT, 6), submit(engine, PROMPT[1:], 6, num_top_tokens=3)
        assert {tuple(event.top_tokens) for event in await read(plain)} == {()}
        assert [event.top_tokens for event in await read(rich)] == [top_tokens(id, 3) for id in answer(PROMPT[1:], 6)]


async def test_a_mailbox_gets_the_tokens_of_all_streams_that_share_it(uds_path, tokenizer):
    mailbox, requests = Mailbox(), [Request(PROMPT[n:], 3 + n) for n in range(3)]
    async with serving(uds_path, tokenizer, Script()) as (engine, _):
        streams = engine.submit(requests, mailbox)
        received: dict[int, list[int]] = {stream.sequence.id: [] for stream in streams}
        async with asyncio.timeout(10):
            for _ in range(3 + 4 + 5):
                stream, event = await mailbox.get()
                received[stream.sequence.id].append(event.token_id)
    assert [stream.sequence.request for stream in streams] == requests
    assert list(received.values()) == [answer(PROMPT[n:], 3 + n) for n in range(3)]


async def test_a_reader_of_several_streams_hears_of_the_one_that_failed(uds_path, tokenizer):
    mailbox = Mailbox()
    script = Script(breaks_on=lambda step: any(99 in message.token_ids for message in step.add))
    async with serving(uds_path, tokenizer, script) as (engine, _):
        streams = engine.submit([Request([99, 5], 4), Request(PROMPT, 100)], mailbox)
        with pytest.raises(GenerationFailed, match="died 3 times"):
            async with asyncio.timeout(10):
                while True:
                    await mailbox.get()
        for stream in streams:
            stream.cancel()
        assert await read_ids(submit(engine, PROMPT, 4)) == answer(PROMPT, 4)


def rated(prompt: list[int], num_top_tokens: int) -> dict[int, PromptScore]:
    positions = range(1, len(prompt))
    return {p: PromptScore(prompt_logprob(p), top_tokens(prompt[p], num_top_tokens, prompt_logprob(p))) for p in positions}


@pytest.mark.parametrize("num_top_tokens", [0, 2])
@pytest.mark.parametrize("budget", [1, 4, 64])
async def test_a_prompt_is_rated_whole_before_its_first_token_comes(uds_path, tokenizer, budget, num_top_tokens):
    async with serving(uds_path, tokenizer, Script(), max_batch_prefill_tokens=budget) as (engine, _):
        stream = submit(engine, PROMPT, 4, prompt_logprobs=True, num_top_tokens=num_top_tokens)
        await first_tokens(stream, 1)
        assert stream.sequence.prompt_scores == rated(PROMPT, num_top_tokens)
        await read(stream)
        assert stream.sequence.prompt_scores == rated(PROMPT, num_top_tokens)  # the answer is no prompt
        other = submit(engine, PROMPT, 4)
        await read(other)
        assert other.sequence.prompt_scores == {}


async def test_a_prompt_of_one_token_has_nothing_to_rate(uds_path, tokenizer):
    async with serving(uds_path, tokenizer, Script()) as (engine, _):
        stream = submit(engine, [50], 2, prompt_logprobs=True)
        assert await read_ids(stream) == answer([50], 2)
    assert stream.sequence.prompt_scores == {}


async def test_a_prompt_that_is_to_be_rated_is_computed_whole_although_it_is_cached(uds_path, tokenizer):
    async with serving(uds_path, tokenizer, Script()) as (engine, shards):
        streams = []
        for prompt_logprobs in (False, True, False):
            streams.append(submit(engine, PROMPT, 4, prompt_logprobs=prompt_logprobs))
            assert await read_ids(streams[-1]) == answer(PROMPT, 4)
        starts = [shards.works(stream.sequence.id)[0].start for stream in streams]
    assert starts == [stream.sequence.num_cached_tokens for stream in streams] == [0, 0, 8]
    assert streams[1].sequence.prompt_scores == rated(PROMPT, 0)


async def test_prompts_are_rated_whole_although_their_sequences_pause(uds_path, tokenizer):
    requests = [([20 + n] * 5, 15) for n in range(6)]
    async with serving(uds_path, tokenizer, Script(num_blocks=9, max_positions=36)) as (engine, _):
        streams = [submit(engine, *request, prompt_logprobs=True) for request in requests]
        texts = await asyncio.gather(*map(read_ids, streams))
    assert sum(stream.sequence.num_preemptions for stream in streams) > 0, "the test means to run out of blocks"
    assert texts == [answer(*request) for request in requests]
    assert [stream.sequence.prompt_scores for stream in streams] == [rated(prompt, 0) for prompt, _ in requests]


@pytest.mark.parametrize("broken_step", [0, 1, 2, 5])
async def test_prompts_are_rated_whole_although_the_shards_die(uds_path, tokenizer, broken_step):
    breaks = iter([True])
    script = Script(max_batch_tokens=4)
    script.breaks_on = lambda step: step.id == broken_step and next(breaks, False)
    async with serving(uds_path, tokenizer, script) as (engine, shards):
        stream = submit(engine, PROMPT, 6, prompt_logprobs=True, num_top_tokens=1)
        assert await read_ids(stream) == answer(PROMPT, 6)
        assert len(shards.streams) == 2
    assert stream.sequence.prompt_scores == rated(PROMPT, 1)


async def test_a_cancelled_request_is_dropped_at_the_next_step_and_its_blocks_are_another_ones(uds_path, tokenizer):
    script = Script(num_blocks=8, max_positions=32, step_seconds=0.001)
    async with serving(uds_path, tokenizer, script) as (engine, shards):
        gone = submit(engine, PROMPT + [20] * 19, 4)  # all blocks but one
        waiting = submit(engine, [30] * 20, 12)  # all blocks
        permits = await first_tokens(gone, 1)
        assert permits == answer(PROMPT + [20] * 19, 1) and not shards.works(waiting.sequence.id)
        gone.cancel()
        assert await read_ids(waiting) == answer([30] * 20, 12)
        dropping = next(step for step in shards.steps if gone.sequence.id in step.drop)
        assert waiting.sequence.id in [work.sequence_id for work in dropping.work]


async def test_a_request_that_is_cancelled_while_it_waits_never_reaches_the_shards(uds_path, tokenizer):
    async with serving(uds_path, tokenizer, Script(num_blocks=8, max_positions=32, step_seconds=0.001)) as (engine, shards):
        first, gone, last = (submit(engine, [30 + n] * 20, 12) for n in range(3))
        await first_tokens(first, 1)
        gone.cancel()
        gone.cancel()
        first.cancel()
        assert await read_ids(last) == answer([32] * 20, 12)
        assert not shards.works(gone.sequence.id) and not shards.has_dropped(gone.sequence.id)


async def test_beyond_the_allowed_number_of_requests_the_next_one_is_refused_at_once(uds_path, tokenizer):
    async with serving(uds_path, tokenizer, Script(), max_concurrent_requests=2) as (engine, _):
        streams = [submit(engine, PROMPT, 3) for _ in range(2)]
        with pytest.raises(Overloaded):
            submit(engine, PROMPT, 3)
        assert await asyncio.gather(*map(read_ids, streams)) == [answer(PROMPT, 3)] * 2
        assert await read_ids(submit(engine, PROMPT, 4)) == answer(PROMPT, 4)


async def test_of_requests_that_come_together_all_are_taken_or_none(uds_path, tokenizer):
    async with serving(uds_path, tokenizer, Script(), max_concurrent_requests=3) as (engine, shards):
        streams = [submit(engine, PROMPT, 3) for _ in range(2)]
        with pytest.raises(Overloaded):
            engine.submit([Request(PROMPT, 3)] * 2, Mailbox())
        streams.append(submit(engine, PROMPT, 3))
        assert await asyncio.gather(*map(read_ids, streams)) == [answer(PROMPT, 3)] * 3
        assert sum(len(step.add) for step in shards.steps) == 3


async def test_a_request_that_is_being_checked_has_its_place(uds_path, tokenizer):
    async with serving(uds_path, tokenizer, Script(), max_concurrent_requests=2) as (engine, _):
        first, second, third = Place(engine), Place(engine), Place(engine)
        first.take()
        second.take()
        with pytest.raises(Overloaded):
            third.take()
        third.free()
        first.free()
        first.free()
        with pytest.raises(Overloaded):
            engine.submit([Request(PROMPT, 3)] * 2, Mailbox())
        second.free()
        streams = engine.submit([Request(PROMPT, 3)] * 2, Mailbox())
        with pytest.raises(Overloaded):
            third.take()
        for stream in streams:
            stream.cancel()
        third.take()


async def test_a_stop_sequence_ends_once_when_two_results_come_together(uds_path, tokenizer, monkeypatch):
    """The second step was sent before the first one's text was made, and its token is nobody's. That two results are there
    at once is a matter of chance, which only the one who hands them out can arrange."""
    text = tokenizer.token_text(answer(PROMPT, 1)[0])
    async with serving(uds_path, tokenizer, Script()) as (engine, _):
        mailbox, take_results = Mailbox(), ShardGroup.take_results
        first: list[StepResult] = []

        def take_two_first(group: ShardGroup) -> list[StepResult]:
            if len(first) >= 2:
                return take_results(group)
            first.extend(take_results(group))
            return first if len(first) >= 2 else []

        monkeypatch.setattr(ShardGroup, "take_results", take_two_first)
        stopped, other = engine.submit([Request(PROMPT, 4, stop=(text,)), Request([7] * 5, 4)], mailbox)
        events = [await asyncio.wait_for(mailbox.get(), 5) for _ in range(5)]
    ends = [(stream, event.finish_reason) for stream, event in events if event.finish_reason]
    assert ends == [(stopped, "stop_sequence"), (other, "length")]
    assert [event.token_id for stream, event in events if stream is other] == answer([7] * 5, 4)


async def test_no_more_sequences_run_at_once_than_allowed(uds_path, tokenizer):
    requests = [([20 + n] * 3, 5 + n) for n in range(5)]
    async with serving(uds_path, tokenizer, Script(), max_batch_size=2) as (engine, shards):
        texts = await asyncio.gather(*(read_ids(submit(engine, *request)) for request in requests))
        assert max(len(step.work) for step in shards.steps) == 2
    assert texts == [answer(*request) for request in requests]


async def test_before_the_shards_are_there_requests_are_refused_and_afterwards_taken(uds_path, tokenizer):
    async with driving(uds_path, tokenizer) as engine:
        with pytest.raises(NotReady, match="waiting for shards"):
            submit(engine, PROMPT, 3)
        assert engine.model is None and engine.limits is None
        async with FakeShards(uds_path):
            await until(lambda: engine.status == "ready")
            assert engine.model.model_id == "fake" and engine.limits.max_total_tokens == 128
            assert await read_ids(submit(engine, PROMPT, 3)) == answer(PROMPT, 3)
            await engine.stop(0)


@pytest.mark.parametrize("world_size", [1, 2])
async def test_a_failed_step_fails_its_requests_and_no_others(uds_path, tokenizer, world_size):
    script = Script(max_batch_tokens=8, fails_on=lambda step: step.id == 1)
    async with serving(uds_path, tokenizer, script, world_size) as (engine, shards):
        failed, other = submit(engine, list(range(20, 40)), 9), submit(engine, PROMPT, 9)
        reading = asyncio.create_task(read_ids(other))
        with pytest.raises(GenerationFailed, match="scripted failure") as raised:
            await read(failed)
        assert raised.value.status == 424
        assert await reading == answer(PROMPT, 9)
        assert engine.status == "ready" and shards.has_dropped(failed.sequence.id)
        assert await read_ids(submit(engine, list(range(20, 40)), 9)) == answer(list(range(20, 40)), 9)
        assert len(shards.streams) == 1


async def test_a_step_that_fails_while_the_next_is_under_way_takes_back_what_it_gave(uds_path, tokenizer):
    script = Script(num_blocks=10, max_positions=40, fails_on=lambda step: step.id == 4)
    requests = [([20 + n] * 6, 14) for n in range(5)]
    async with serving(uds_path, tokenizer, script) as (engine, shards):
        outcomes = await asyncio.gather(*(read_ids(submit(engine, *r)) for r in requests), return_exceptions=True)
        assert await read_ids(submit(engine, PROMPT, 31)) == answer(PROMPT, 31)  # which needs every block
        assert len(shards.streams) == 1
    answers = [answer(*request) for request in requests]
    assert all(isinstance(got, GenerationFailed) or got == ids for got, ids in zip(outcomes, answers, strict=True))
    assert 0 < sum(isinstance(got, GenerationFailed) for got in outcomes) < 5


async def test_when_the_shards_die_a_stream_pauses_and_goes_on_with_the_exact_next_token(uds_path, tokenizer):
    async with FakeShards(uds_path, script=Script(step_seconds=0.002)) as shards, driving(uds_path, tokenizer) as engine:
        await until(lambda: engine.status == "ready")
        streams = [submit(engine, PROMPT[n:], 40) for n in range(3)]
        before = await asyncio.gather(*(first_tokens(stream, 5) for stream in streams))
        await shards.stop()
        await until(lambda: engine.status != "ready")
        assert "shards" in engine.status
        streams.append(submit(engine, [40, 41], 4))  # taken in the pause
        async with FakeShards(uds_path, script=Script(block_size=8, num_blocks=16)) as successors:  # less than before
            after = await asyncio.gather(*map(read_ids, streams))
            assert engine.status == "ready" and engine.limits.max_total_tokens == 128
            added = {message.id: list(message.token_ids) for message in successors.steps[0].add}
            await engine.stop(0)
    assert [early + late for early, late in zip([*before, []], after, strict=True)] == [
        *(answer(PROMPT[n:], 40) for n in range(3)),
        answer([40, 41], 4),
    ]
    assert all(len(added[n]) >= len(PROMPT[n:]) + 5 for n in range(3))  # nothing is sampled again


async def test_what_restarted_shards_can_no_longer_hold_is_told_so_and_the_rest_goes_on(uds_path, tokenizer):
    async with FakeShards(uds_path, script=Script(step_seconds=0.002)) as shards, driving(uds_path, tokenizer) as engine:
        await until(lambda: engine.status == "ready")
        large, small = submit(engine, PROMPT, 100), submit(engine, PROMPT, 20)
        before = await first_tokens(small, 2)
        await shards.stop()
        await until(lambda: engine.status != "ready")
        async with FakeShards(uds_path, script=Script(num_blocks=10)):
            with pytest.raises(GenerationFailed, match="hold only 40 tokens"):
                await read(large)
            assert before + await read_ids(small) == answer(PROMPT, 20)
            await engine.stop(0)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("broken_step", [0, 1, 2, 6])
async def test_a_stream_that_breaks_at_any_step_changes_no_text(uds_path, tokenizer, broken_step, world_size):
    breaks = iter([True])
    script = Script(max_batch_tokens=16, num_blocks=12, max_positions=48)
    script.breaks_on = lambda step: step.id == broken_step and next(breaks, False)
    requests = [([20 + n] * (5 + 3 * n), 12) for n in range(4)]
    async with serving(uds_path, tokenizer, script, world_size) as (engine, shards):
        texts = await asyncio.gather(*(read_ids(submit(engine, *request)) for request in requests))
        assert len(shards.streams) == 2
    assert texts == [answer(*request) for request in requests]


async def test_a_request_that_was_being_computed_in_three_crashes_is_given_up(uds_path, tokenizer):
    script = Script(breaks_on=lambda step: any(99 in message.token_ids for message in step.add))
    async with serving(uds_path, tokenizer, script) as (engine, shards):
        with pytest.raises(GenerationFailed, match="died 3 times"):
            await read(submit(engine, [99, 5], 4))
        assert len(shards.streams) >= 3
        assert await read_ids(submit(engine, PROMPT, 4)) == answer(PROMPT, 4)


async def test_all_ranks_get_the_same_steps(uds_path, tokenizer):
    requests = [(PROMPT[:n], 10) for n in range(1, 7)]
    async with serving(uds_path, tokenizer, Script(num_blocks=12, max_positions=48), world_size=3) as (engine, shards):
        texts = await asyncio.gather(*(read_ids(submit(engine, *request)) for request in requests))
        await until(lambda: len({len(shard.streams[0].steps) for shard in shards.ranks}) == 1)
        assert shards.ranks[0].streams[0].steps == shards.ranks[1].streams[0].steps == shards.ranks[2].streams[0].steps
        assert len(shards.steps) > 10
    assert texts == [answer(*request) for request in requests]


async def test_a_follow_up_computes_neither_the_first_prompt_nor_its_answer_again(uds_path, tokenizer):
    async with serving(uds_path, tokenizer, Script()) as (engine, shards):
        prompt = PROMPT + await read_ids(submit(engine, PROMPT, 8))  # 16 positions computed, the 17th token is the last
        stream = submit(engine, [*prompt, 50, 51], 5)
        assert await read_ids(stream) == answer([*prompt, 50, 51], 5)
        assert shards.works(stream.sequence.id)[0].start == stream.sequence.num_cached_tokens == 16


async def test_without_prefix_caching_every_prompt_is_computed_whole(uds_path, tokenizer):
    async with serving(uds_path, tokenizer, Script(), prefix_caching=False) as (engine, shards):
        for _ in range(2):
            assert await read_ids(submit(engine, PROMPT, 5)) == answer(PROMPT, 5)
        assert [shards.works(sequence_id)[0].start for sequence_id in range(2)] == [0, 0]


async def test_a_model_that_cannot_share_prefixes_computes_every_prompt_whole(uds_path, tokenizer):
    async with serving(uds_path, tokenizer, Script(prefix_cache=False)) as (engine, shards):
        for _ in range(2):
            assert await read_ids(submit(engine, PROMPT, 5)) == answer(PROMPT, 5)
        assert [shards.works(sequence_id)[0].start for sequence_id in range(2)] == [0, 0]


async def test_a_model_that_takes_no_part_of_a_prompt_gets_each_whole_whatever_the_budget(uds_path, tokenizer):
    script = Script(num_blocks=12, max_batch_tokens=128, chunked_prefill=False, prefix_cache=False)
    prompts = [[50 + number] * (5 * number + 1) for number in range(5)]
    async with serving(uds_path, tokenizer, script, max_batch_prefill_tokens=5) as (engine, _):
        streams = [submit(engine, prompt, 20) for prompt in prompts]
        assert [await read_ids(stream) for stream in streams] == [answer(prompt, 20) for prompt in prompts]


async def test_a_long_prompt_does_not_stop_the_streams_that_run(uds_path, tokenizer):
    async with serving(uds_path, tokenizer, Script(step_seconds=0.001), max_batch_prefill_tokens=5) as (engine, shards):
        running = submit(engine, [50], 60)
        await first_tokens(running, 10)  # from then on it is no longer one of a burst
        long = submit(engine, [60] * 40, 3)
        assert await read_ids(long) == answer([60] * 40, 3)
        await read(running)
        prefilling = [step for step in shards.steps if any(work.length > 1 for work in step.work)]
        assert len(prefilling) == 10  # 4 tokens each beside the other's one
        assert all(running.sequence.id in [work.sequence_id for work in step.work] for step in prefilling)


async def test_a_shutdown_lets_what_runs_finish(uds_path, tokenizer):
    async with serving(uds_path, tokenizer, Script(step_seconds=0.001)) as (engine, _):
        reading = asyncio.create_task(read_ids(submit(engine, PROMPT, 30)))
        await asyncio.sleep(0)
        await engine.stop(5)
        assert await reading == answer(PROMPT, 30)


async def test_a_shutdown_fails_what_does_not_finish_in_time(uds_path, tokenizer):
    async with serving(uds_path, tokenizer, Script(permits=asyncio.Semaphore(2))) as (engine, _):
        stream = submit(engine, PROMPT, 30)
        assert await first_tokens(stream, 2) == answer(PROMPT, 2)
        await engine.stop(0.01)
        with pytest.raises(GenerationFailed, match="shutting down"):
            await read(stream)


async def test_during_a_shutdown_nothing_new_is_taken(uds_path, tokenizer):
    async with serving(uds_path, tokenizer, Script()) as (engine, _):
        await engine.stop(0)
        with pytest.raises(NotReady, match="shutting down"):
            engine.check_room()


async def test_gauges_show_what_runs_and_waits_and_in_the_end_nothing(uds_path, tokenizer):
    metrics, permits = Metrics(), asyncio.Semaphore(0)
    script = Script(num_blocks=8, max_positions=32, permits=permits)
    async with serving(uds_path, tokenizer, script, metrics=metrics, max_batch_size=1) as (engine, shards):
        streams = [submit(engine, PROMPT, 3), submit(engine, PROMPT, 7)]
        await until(lambda: len(shards.steps) == 2)
        engine.update_gauges()
        found = values(metrics)
        assert (found["tgi_queue_size"], found["tgi_num_requests_waiting"]) == (1, 1)
        assert (found["tgi_batch_current_size"], found["tgi_num_requests_running"]) == (1, 1)
        assert found["tgi_batch_current_max_tokens"] == len(PROMPT) + 3
        assert (found["tgi_kv_cache_num_blocks"], found["tgi_kv_cache_block_size"]) == (8, 4)
        assert found["tgi_batch_max_total_tokens"] == 32
        assert found["tgi_kv_cache_utilization"] == 3 / 8
        for _ in range(50):
            permits.release()
        await asyncio.gather(*map(read, streams))
        engine.update_gauges()
        found = values(metrics)
    assert found["tgi_queue_size"] == found["tgi_batch_current_size"] == found["tgi_batch_current_max_tokens"] == 0
    assert found["tgi_kv_cache_utilization"] == 0  # though the prefix cache keeps what was computed


async def test_gauges_can_be_read_before_the_shards_are_there(uds_path, tokenizer):
    metrics = Metrics()
    async with driving(uds_path, tokenizer, metrics=metrics) as engine:
        engine.update_gauges()
    assert values(metrics)["tgi_kv_cache_num_blocks"] == 0


async def test_steps_are_counted_and_measured_once_each(uds_path, tokenizer):
    metrics = Metrics()
    async with serving(uds_path, tokenizer, Script(step_seconds=0.005), metrics=metrics) as (engine, _):
        start_seconds = time.monotonic()
        await read(submit(engine, PROMPT, 6))
        passed_seconds = time.monotonic() - start_seconds
    found = values(metrics)
    for name in ("batch_inference_count", "batch_inference_success"):
        assert found[f'tgi_{name}{{method="prefill"}}'] == 1 and found[f'tgi_{name}{{method="decode"}}'] == 5
    for name, seconds in (("forward", FORWARD_MICROS / 1e6), ("decode", SAMPLE_MICROS / 1e6)):
        assert found[f'tgi_batch_{name}_duration_sum{{method="decode"}}'] == pytest.approx(5 * seconds)
        assert found[f'tgi_batch_{name}_duration_count{{method="prefill"}}'] == 1
    durations = [found[f'tgi_batch_inference_duration_sum{{method="{method}"}}'] for method in ("prefill", "decode")]
    assert 6 * 0.005 <= sum(durations) <= passed_seconds  # steps overlap, their times do not
    assert found["tgi_batch_next_size_count"] == found["tgi_batch_next_size_sum"] == 1


async def test_sequences_that_join_running_ones_are_counted(uds_path, tokenizer):
    metrics = Metrics()
    async with serving(uds_path, tokenizer, Script(step_seconds=0.001), metrics=metrics) as (engine, _):
        running = submit(engine, PROMPT, 60)
        await first_tokens(running, 1)
        await asyncio.gather(*(read(submit(engine, [30 + n], 2)) for n in range(2)))
        await read(running)
    found = values(metrics)
    assert found['tgi_batch_concat{reason="chunking"}'] == 1
    assert (found["tgi_batch_next_size_sum"], found["tgi_batch_next_size_count"]) == (3, 2)


async def test_a_failed_step_is_counted_as_such(uds_path, tokenizer):
    metrics = Metrics()
    async with serving(uds_path, tokenizer, Script(fails_on=lambda step: step.id == 0), metrics=metrics) as (engine, _):
        with pytest.raises(GenerationFailed):
            await read(submit(engine, PROMPT, 1))
    found = values(metrics)
    assert found['tgi_batch_inference_failure{method="prefill"}'] == 1
    assert found['tgi_batch_inference_success{method="prefill"}'] == 0


MODEL = dataclasses.replace(fake_engine.MODEL, block_size=16, num_blocks=10, max_positions=200)


@pytest.mark.parametrize(
    ("max_input_tokens", "max_total_tokens", "expected"),
    [
        (None, None, (159, 160)),  # what the cache holds, which is less than the model's 200 positions
        (None, 100, (99, 100)),
        (50, 100, (50, 100)),
        (50, None, (50, 160)),
        (None, 1000, (159, 160)),
        (900, 1000, (159, 160)),
    ],
)
def test_limits_are_the_flags_within_what_the_shards_hold(max_input_tokens, max_total_tokens, expected):
    config = RouterConfig("unused", max_input_tokens=max_input_tokens, max_total_tokens=max_total_tokens)
    found = limits(config, MODEL)
    assert (found.max_input_tokens, found.max_total_tokens) == expected


@pytest.mark.parametrize("eos_length", [None, 25])
async def test_guesses_of_the_shards_change_no_answer(uds_path, tokenizer, eos_length):
    metrics = Metrics()
    script = Script(eos_length=eos_length)
    async with serving(uds_path, tokenizer, script, metrics=metrics, speculate=3) as (engine, shards):
        answers = await asyncio.gather(*(read_ids(submit(engine, [*PROMPT, 30 + n], 40)) for n in range(3)))
        assert all(step.num_speculative == 3 for step in shards.steps)
    assert answers == [answer([*PROMPT, 30 + n], 40, eos_length) for n in range(3)]
    assert values(metrics)["tgi_request_skipped_tokens_sum"] > 10


@pytest.mark.parametrize("eos_length", [None, 25])
async def test_shards_that_are_faster_than_the_router_decode_several_tokens_a_step(uds_path, tokenizer, eos_length):
    script = Script(eos_length=eos_length, says_it_took=(1, 1))
    async with serving(uds_path, tokenizer, script) as (engine, shards):
        answers = await asyncio.gather(*(read_ids(submit(engine, [*PROMPT, 30 + n], 40 + n)) for n in range(2)))
        num_iterations = [step.num_iterations for step in shards.steps]
    assert answers == [answer([*PROMPT, 30 + n], 40 + n, eos_length) for n in range(2)]
    assert max(num_iterations) == MAX_ITERATIONS and num_iterations[0] == 1


async def test_a_stop_sequence_within_a_step_ends_the_text_there(uds_path, tokenizer):
    expected = answer(PROMPT, 40)
    stop = text_of(tokenizer, expected[20:23])
    async with serving(uds_path, tokenizer, Script(says_it_took=(1, 1))) as (engine, _):
        events = await read(submit(engine, PROMPT, 40, stop=(stop,)))
        await until(lambda: not engine._streams)
    assert [event.token_id for event in events] == expected[:23]
    assert events[-1].finish_reason == "stop_sequence" and events[-1].generated_text.endswith(stop)

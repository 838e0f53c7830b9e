import asyncio
import logging

import pytest

from text_generation_router import errors

CHAT = {"messages": [{"role": "user", "content": "A"}]}
REQUESTS = [
    pytest.param("/generate", {"inputs": "A"}, id="generate"),
    pytest.param("/generate", {"inputs": "A", "parameters": {"best_of": 2, "do_sample": True}}, id="best_of"),
    pytest.param("/generate_stream", {"inputs": "A"}, id="generate_stream"),
    pytest.param("/v1/chat/completions", CHAT | {"n": 2}, id="chat"),
    pytest.param("/v1/chat/completions", CHAT | {"n": 2, "stream": True}, id="chat stream"),
    pytest.param("/v1/completions", {"prompt": ["A", "B"]}, id="completions"),
    pytest.param("/v1/completions", {"prompt": ["A", "B"], "stream": True}, id="completions stream"),
    pytest.param("/vertex", {"instances": [{"inputs": "A"}, CHAT]}, id="vertex"),
]


@pytest.mark.parametrize(("route", "body"), REQUESTS)
@pytest.mark.parametrize("failure", [None, errors.GenerationFailed("x"), KeyError("x")])
async def test_every_sequence_is_let_go_of_exactly_once_however_it_ended(client, engine, route, body, failure):
    engine.failure = failure
    await client.post(route, body)
    assert {stream.num_cancels for stream in engine.streams} == {1}


@pytest.mark.parametrize(("route", "body"), REQUESTS)
async def test_a_client_that_goes_away_cancels_all_of_its_sequences(client, engine, route, body):
    engine.goes_on = asyncio.Event()
    request = asyncio.create_task(client.http.post(route, json=body))
    while not engine.streams:
        await asyncio.sleep(0.01)
    streams = body.get("stream") or route == "/generate_stream"
    if streams:
        (await request).close()
    else:
        request.cancel()
    await asyncio.wait_for(asyncio.gather(*(stream.cancelled.wait() for stream in engine.streams)), 5)
    await asyncio.sleep(0.02)
    assert {stream.num_cancels for stream in engine.streams} == {1}


@pytest.mark.parametrize(("route", "body"), REQUESTS)
async def test_no_task_stays_behind_when_a_request_fails(client, engine, route, body):
    engine.say("A", "B" * 12)  # where there are several, the second one still runs when the first one fails
    engine.failure = errors.GenerationFailed("x")
    await client.post(route, body)
    await asyncio.sleep(0.02)
    coroutines = {task.get_coro().__qualname__ for task in asyncio.all_tasks()}
    assert not {name for name in coroutines if name.startswith(("Generation.", "EventStream.", "Mailbox."))}


async def test_one_log_line_a_sequence_tells_how_it_went_and_never_the_prompt(client, engine, caplog):
    caplog.set_level(logging.INFO, "text_generation_router")
    await client.generate()
    engine.failure = errors.GenerationFailed("x")
    await client.generate("/generate_stream")
    finished, aborted = caplog.messages
    assert f"request finished id=0 prompt_tokens=4 cached_tokens=0 generated_tokens={len(engine.token_ids)} " in finished
    assert "finish_reason=eos_token queue_seconds=0.0010 total_seconds=" in finished
    assert "finish_reason=aborted" in aborted
    assert "AAAA" not in caplog.text and engine.text not in caplog.text

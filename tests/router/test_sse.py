import asyncio
import json
import logging

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from text_generation_router import schema
from text_generation_router.errors import GenerationFailed
from text_generation_router.sse import EventStream

EVENT = schema.ErrorBody("日本", "x")  # any struct is an event


async def answer(body, keep_alive_seconds=15.0) -> tuple[web.Response, bytes]:
    """What a client gets from a handler that runs `body(events)` on an open stream."""

    async def handler(request: web.Request) -> web.StreamResponse:
        async with EventStream(request, {"x-more": "1"}, keep_alive_seconds) as events:
            await body(events)
        return events.response

    app = web.Application()
    app.add_routes([web.get("/", handler)])
    async with TestClient(TestServer(app)) as client:
        response = await client.get("/")
        return response, await response.read()


async def test_an_event_is_one_data_line_and_a_blank_one():
    response, body = await answer(lambda events: events.send(EVENT))
    assert body == 'data: {"error":"日本","error_type":"x"}\n\n'.encode()
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-more"] == "1"


async def test_an_error_after_the_first_event_is_the_last_event():
    async def body(events: EventStream) -> None:
        await events.send(EVENT)
        raise GenerationFailed("out of memory")

    response, received = await answer(body)
    assert response.status == 200
    last = json.loads(received.split(b"\n\n")[1].removeprefix(b"data: "))
    assert last == {"error": "Request failed during generation: out of memory", "error_type": "generation"}


async def test_an_error_that_nobody_foresaw_is_logged_and_stays_inside(caplog):
    async def body(events: EventStream) -> None:
        raise KeyError("secret")

    _, received = await answer(body)
    assert received == b'data: {"error":"Internal server error","error_type":"internal"}\n\n'
    assert "secret" in caplog.text and caplog.records[-1].levelno == logging.ERROR


async def test_silence_is_filled_with_comments_and_only_silence():
    async def body(events: EventStream) -> None:
        await events.send(EVENT)
        await asyncio.sleep(0.25)
        for _ in range(10):
            await asyncio.sleep(0.03)
            await events.send(EVENT)

    _, received = await answer(body, keep_alive_seconds=0.1)
    blocks = received.removesuffix(b"\n\n").split(b"\n\n")
    assert blocks[1:3] == [b":", b":"]
    assert b":" not in blocks[3:] and len(blocks) == 13


async def test_the_keep_alive_ends_with_its_stream():
    tasks_before = len(asyncio.all_tasks())
    await answer(lambda events: events.send(EVENT))
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == tasks_before

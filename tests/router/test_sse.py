import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from text_generation_router.errors import GenerationFailed, InternalError, RequestError, TemplateError
from text_generation_router.schema.body import ErrorBody, native_error, openai_error
from text_generation_router.sse import FAILURE, EventStream

EVENT = ErrorBody("日本", "x")  # any struct is an event
LARGE = ErrorBody("x" * 100_000, "x")
STALL_SECONDS = 0.3

Body = Callable[[EventStream], Awaitable[None]]


class Handler:
    """Runs `body(events)` on an open stream, and remembers how that ended."""

    def __init__(self, body: Body, error_body=native_error, **options: float) -> None:
        self.body, self.error_body, self.options = body, error_body, options
        self.failure: Exception | None = None
        self.ended = asyncio.Event()

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        try:
            async with EventStream(request, {"x-more": "1"}, self.error_body, **self.options) as events:
                await self.body(events)
            return events.response
        finally:
            self.failure = request.get(FAILURE)
            self.ended.set()

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator[TestServer]:
        app = web.Application()
        app.add_routes([web.get("/", self)])
        async with TestServer(app) as server:
            yield server


async def answer(body: Body, **options) -> tuple[web.Response, bytes]:
    """What a client gets."""
    return await asked(Handler(body, **options))


async def asked(handler: Handler) -> tuple[web.Response, bytes]:
    async with handler.served() as server, TestClient(server) as client:
        response = await client.get("/")
        return response, await response.read()


async def test_an_event_is_one_data_line_and_a_blank_one():
    response, body = await answer(lambda events: events.send(EVENT))
    assert body == 'data: {"error":"日本","error_type":"x"}\n\n'.encode()
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-more"] == "1"


async def test_openais_clients_are_told_the_end():
    async def body(events: EventStream) -> None:
        await events.send(EVENT)
        await events.send_done()

    _, received = await answer(body)
    assert received.endswith(b"\n\ndata: [DONE]\n\n")


@pytest.mark.parametrize(
    ("error_body", "error", "expected"),
    [
        (
            native_error,
            GenerationFailed("oom"),
            {"error": "Request failed during generation: oom", "error_type": "generation"},
        ),
        (
            openai_error,
            GenerationFailed("oom"),
            {
                "error": {
                    "message": "Request failed during generation: oom",
                    "type": "generation",
                    "code": "generation",
                    "param": None,
                },
                "error_type": "generation",
            },
        ),
        (
            openai_error,
            TemplateError("no"),
            {
                "error": {
                    "message": "Template error: no",
                    "type": "invalid_request_error",
                    "code": "template_error",
                    "param": None,
                },
                "error_type": "template_error",
            },
        ),
    ],
)
async def test_an_error_after_the_first_event_is_the_last_event_in_the_routes_own_shape(error_body, error, expected):
    async def body(events: EventStream) -> None:
        await events.send(EVENT)
        raise error

    handler = Handler(body, error_body)
    response, received = await asked(handler)
    assert response.status == 200
    assert json.loads(received.removesuffix(b"\n\n").split(b"\n\n")[1].removeprefix(b"data: ")) == expected
    assert handler.failure is error


async def test_an_error_that_nobody_foresaw_is_logged_and_stays_inside(caplog):
    async def body(events: EventStream) -> None:
        raise KeyError("secret")

    handler = Handler(body)
    _, received = await asked(handler)
    assert received == b'data: {"error":"Internal server error","error_type":"internal"}\n\n'
    assert "secret" in caplog.text and caplog.records[-1].levelno == logging.ERROR
    assert isinstance(handler.failure, KeyError) and not isinstance(handler.failure, RequestError | InternalError)


async def test_a_stream_that_ends_well_has_no_failure():
    handler = Handler(lambda events: events.send(EVENT))
    await asked(handler)
    assert handler.failure is None


async def test_a_client_that_has_gone_is_no_error_of_ours(caplog):
    async def body(events: EventStream) -> None:
        raise ConnectionResetError("gone")

    handler = Handler(body)
    _, received = await asked(handler)
    assert received == b"" and isinstance(handler.failure, ConnectionResetError)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


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


@contextlib.asynccontextmanager
async def silent_client(server: TestServer) -> AsyncIterator[socket.socket]:
    """Has asked, and reads nothing by itself."""
    with socket.socket() as client:
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, (server.host, server.port))
        await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nhost: here\r\n\r\n")
        yield client


async def is_closed(client: socket.socket) -> bool:
    """Reads what is there; whether nothing can follow."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(3):
            while True:
                try:
                    if not await asyncio.get_running_loop().sock_recv(client, 1 << 20):
                        return True
                except ConnectionResetError:
                    return True
    return False


async def send_for_ever(events: EventStream) -> None:
    while True:
        await events.send(LARGE)


async def test_a_client_that_reads_nothing_is_cut_off(caplog):
    handler = Handler(send_for_ever, keep_alive_seconds=0.1, stall_seconds=STALL_SECONDS)
    async with asyncio.timeout(10), handler.served() as server, silent_client(server) as client:
        await handler.ended.wait()
        assert await is_closed(client)
    assert "reads too slowly" in caplog.text


async def test_a_client_that_reads_slowly_is_not_cut_off():
    async def body(events: EventStream) -> None:
        for _ in range(100):
            await events.send(LARGE)

    handler = Handler(body, keep_alive_seconds=0.1, stall_seconds=STALL_SECONDS)
    num_bytes = 0
    async with asyncio.timeout(20), handler.served() as server, silent_client(server) as client:
        while num_bytes < 100 * 100_000:
            await asyncio.sleep(0.01)
            num_bytes += len(await asyncio.get_running_loop().sock_recv(client, 200_000))
        await handler.ended.wait()
    assert handler.failure is None


async def test_a_client_that_waits_long_for_the_next_event_is_not_cut_off():
    async def body(events: EventStream) -> None:
        await events.send(EVENT)
        await asyncio.sleep(0.5)
        await events.send(EVENT)

    handler = Handler(body, keep_alive_seconds=0.05, stall_seconds=0.1)
    _, received = await asked(handler)
    assert received.count(b"data: ") == 2 and handler.failure is None


async def fill(events: EventStream) -> None:
    """Sends until the transport takes no more; small events, which aiohttp does not wait for."""
    while not events._request.protocol._paused:
        await events.send(ErrorBody("x" * 1000, "x"))


async def test_a_client_that_reads_nothing_is_cut_off_when_its_stream_has_ended():
    handler = Handler(fill, keep_alive_seconds=0.1, stall_seconds=STALL_SECONDS)
    async with asyncio.timeout(10), handler.served() as server, silent_client(server):
        await handler.ended.wait()
        (connection,) = server.runner.server.connections
        await asyncio.sleep(3 * STALL_SECONDS)
        assert connection.transport is None or connection.transport.is_closing()


async def test_a_client_that_reads_nothing_is_cut_off_when_it_is_a_comment_that_is_stuck():
    async def body(events: EventStream) -> None:
        await fill(events)
        room = 65536 - events.response._payload_writer.buffer_size  # until aiohttp waits for the client
        await events.send(ErrorBody("x" * (room - 48), "x"))
        await asyncio.sleep(0.3)  # comments
        await send_for_ever(events)

    handler = Handler(body, keep_alive_seconds=0.02, stall_seconds=STALL_SECONDS)
    async with handler.served() as server, silent_client(server):
        await asyncio.wait_for(handler.ended.wait(), 6 * STALL_SECONDS)

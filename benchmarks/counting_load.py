"""CountingLoad: keep-alive connections that ask again as soon as they are answered, and only count what comes.

In: a port, a kind of request. Out: how many events and answers came so far. As cheap as a client can be, because it stands on
the core of the shard; load.py is the one that looks at times. It knows as much of HTTP as it takes to find an answer's end.
"""

import asyncio
import json
import re
from types import TracebackType
from typing import Self

EVENT_START = b"data:"
LAST_CHUNK = b"\r\n0\r\n\r\n"
TAIL_BYTES = len(LAST_CHUNK) - 1
BODY_START = re.compile(rb"content-length: (\d+)\r\n(?:[^\r]+\r\n)*\r\n", re.IGNORECASE)
GOOD_STATUS = b"HTTP/1.1 200 "


class CountingLoad:
    def __init__(self, port: int, *, streamed: bool, num_connections: int, max_new_tokens: int) -> None:
        self.num_tokens = 0
        self.num_requests = 0
        self.max_new_tokens = max_new_tokens
        self._port = port
        self._path = "/generate_stream" if streamed else "/generate"
        kind = _StreamedConnection if streamed else _WholeConnection
        self._connections = [kind(self) for _ in range(num_connections)]
        self._num_sent = 0
        self._failure: str | None = None
        self._closing = False

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for connection in self._connections:
            await loop.create_connection(lambda made=connection: made, "127.0.0.1", self._port)  # type: ignore[misc]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        for connection in self._connections:
            connection.transport.abort()
        await asyncio.sleep(0)

    def check(self) -> None:
        """Raises: RuntimeError when any answer so far was not what was asked for."""
        if self._failure:
            raise RuntimeError(self._failure)

    def next_request(self) -> bytes:
        """Each prompt is another one, so that no two sequences share blocks."""
        self._num_sent += 1
        body = json.dumps(
            {"inputs": f"{self._num_sent}: what came next", "parameters": {"max_new_tokens": self.max_new_tokens}}
        ).encode()
        head = f"POST {self._path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        return b"%scontent-length: %d\r\n\r\n%s" % (head.encode(), len(body), body)

    def fail(self, reason: str) -> None:
        if not self._closing:
            self._failure = self._failure or reason


class _Connection(asyncio.Protocol):
    def __init__(self, load: CountingLoad) -> None:
        self._load = load
        self._begun = False  # the answer to the last request

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.transport.write(self._load.next_request())

    def connection_lost(self, error: Exception | None) -> None:
        self._load.fail(f"the server closed a connection: {error}")

    def _begin(self, data: bytes) -> None:
        self._begun = True
        if not data.startswith(GOOD_STATUS):
            self._load.fail(f"an answer is {data[:500]!r}")
            self.transport.abort()

    def _finish(self, num_tokens: int) -> None:
        if num_tokens != self._load.max_new_tokens:
            self._load.fail(f"{num_tokens} tokens came for {self._load.max_new_tokens}")
        self._load.num_requests += 1
        self._begun = False
        self.transport.write(self._load.next_request())


class _StreamedConnection(_Connection):
    _tail = b""  # of what came last: an event or the end may come in two pieces
    _num_tokens = 0

    def data_received(self, data: bytes) -> None:
        if not self._begun:
            self._begin(data)
        window = self._tail + data
        num_tokens = window.count(EVENT_START) - self._tail.count(EVENT_START)
        self._num_tokens += num_tokens
        self._load.num_tokens += num_tokens
        self._tail = window[-TAIL_BYTES:]
        if window.endswith(LAST_CHUNK):
            num_tokens, self._num_tokens, self._tail = self._num_tokens, 0, b""
            self._finish(num_tokens)


class _WholeConnection(_Connection):
    _received = b""

    def data_received(self, data: bytes) -> None:
        if not self._begun:
            self._begin(data)
        self._received += data
        body = BODY_START.search(self._received)
        if body and len(self._received) >= body.end() + int(body[1]):
            self._received = b""
            self._load.num_tokens += self._load.max_new_tokens
            self._finish(self._load.max_new_tokens)

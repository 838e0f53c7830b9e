"""EventStream: events to text/event-stream, from the first byte to the last one, whatever happens in between.

In: message structs, one at a time. Out: one `data:` event each, a comment in long silences so that proxies keep the
connection, and, where the body of the `async with` fails, that error as the last event: the status is already sent.
A client that reads nothing for too long is cut off. Knows nothing of tokens.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from types import TracebackType

import msgspec
from aiohttp import web

from text_generation_router.errors import InternalError, RequestError
from text_generation_router.schema.body import encode

KEEP_ALIVE_SECONDS = 15.0
STALL_SECONDS = 60.0
FAILURE = web.RequestKey("failure", Exception)
_HEADERS = {"content-type": "text/event-stream", "cache-control": "no-cache", "x-accel-buffering": "no"}

logger = logging.getLogger(__name__)


class EventStream:
    """Used as `async with EventStream(request, headers, error_body) as events: await events.send(...)`. What ends it early
    is also kept in `request[FAILURE]`."""

    def __init__(
        self,
        request: web.Request,
        headers: dict[str, str],
        error_body: Callable[[RequestError], msgspec.Struct],
        keep_alive_seconds: float = KEEP_ALIVE_SECONDS,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self.response = web.StreamResponse(headers={**headers, **_HEADERS})
        self._request = request
        self._error_body = error_body
        self._keep_alive_seconds = keep_alive_seconds
        self._stall_seconds = stall_seconds
        self._last_write_seconds = time.monotonic()
        self._writes = False

    async def send(self, event: msgspec.Struct) -> None:
        self._begin_write()
        await self.response.write(b"data: " + encode(event) + b"\n\n")
        self._writes = False

    async def send_done(self) -> None:
        """What OpenAI's clients take for the end."""
        self._begin_write()
        await self.response.write(b"data: [DONE]\n\n")
        self._writes = False

    async def __aenter__(self) -> "EventStream":
        await self.response.prepare(self._request)
        self._watch_task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Sends the error of the body as an event. A cancellation goes on; a client that has gone hears nothing."""
        try:
            if isinstance(error, Exception):
                self._request[FAILURE] = error
            if error is None or isinstance(error, Exception):
                await self._finish(error)
        finally:
            self._watch_task.cancel()
        return isinstance(error, Exception)

    async def _finish(self, error: Exception | None) -> None:
        """The last words, and the wait until the client has taken them."""
        try:
            if error is not None and not isinstance(error, ConnectionError):
                await self.send(self._error_body(self._shown(error)))
            self._begin_write()
            await self.response.write_eof()
        except ConnectionError as gone:
            self._request.setdefault(FAILURE, gone)

    def _shown(self, error: Exception) -> RequestError:
        if isinstance(error, RequestError):
            return error
        logger.error("request failed after the first event", exc_info=error)
        return InternalError()

    def _begin_write(self) -> None:
        self._last_write_seconds = time.monotonic()
        self._writes = True

    async def _watch(self) -> None:
        """A comment line per silence; the end of the connection when a write is stuck. One task a stream, and one number an
        event, instead of a timer an event."""
        while True:
            limit_seconds = self._stall_seconds if self._writes else self._keep_alive_seconds
            remaining_seconds = self._last_write_seconds + limit_seconds - time.monotonic()
            if remaining_seconds > 0:
                await asyncio.sleep(min(remaining_seconds, self._keep_alive_seconds))
            elif self._writes:
                self._cut_off()
                return
            elif not await self._send_comment():
                return

    async def _send_comment(self) -> bool:
        """False: the client has gone, or was sent away because it did not even take this."""
        self._last_write_seconds = time.monotonic()
        try:
            async with asyncio.timeout(self._stall_seconds):
                await self.response.write(b":\n\n")
        except TimeoutError:
            self._cut_off()
        except ConnectionError:
            pass
        else:
            return True
        return False

    def _cut_off(self) -> None:
        logger.warning("client reads too slowly, its stream is cut off seconds=%g", self._stall_seconds)
        if self._request.transport:
            self._request.transport.abort()

"""EventStream: events to text/event-stream, from the first byte to the last one, whatever happens in between.

In: message structs, one at a time. Out: one `data:` event each, a comment in long silences so that proxies keep the
connection, and, where the body of the `async with` fails, that error as the last event: the status is already sent.
Knows nothing of tokens.
"""

import asyncio
import logging
import time
from types import TracebackType

import msgspec
from aiohttp import web

from text_generation_router import schema
from text_generation_router.errors import InternalError, RequestError

KEEP_ALIVE_SECONDS = 15.0
_HEADERS = {"content-type": "text/event-stream", "cache-control": "no-cache", "x-accel-buffering": "no"}

logger = logging.getLogger(__name__)


class EventStream:
    """Used as `async with EventStream(request, headers) as events: await events.send(...)`."""

    def __init__(
        self, request: web.Request, headers: dict[str, str], keep_alive_seconds: float = KEEP_ALIVE_SECONDS
    ) -> None:
        self.response = web.StreamResponse(headers={**headers, **_HEADERS})
        self._request = request
        self._keep_alive_seconds = keep_alive_seconds
        self._last_write_seconds = time.monotonic()

    async def send(self, event: msgspec.Struct) -> None:
        self._last_write_seconds = time.monotonic()
        await self.response.write(b"data: " + schema.encode(event) + b"\n\n")

    async def __aenter__(self) -> "EventStream":
        await self.response.prepare(self._request)
        self._keep_alive_task = asyncio.create_task(self._keep_alive())
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Sends the error of the body as an event. A cancellation goes on; a client that has gone hears nothing."""
        self._keep_alive_task.cancel()
        if isinstance(error, ConnectionError):
            return True
        if isinstance(error, Exception):
            if not isinstance(error, RequestError):
                logger.error("request failed after the first event", exc_info=error)
                error = InternalError()
            await self._send_error(error)
        return isinstance(error, Exception)

    async def _send_error(self, error: RequestError) -> None:
        try:
            await self.send(schema.ErrorBody(str(error), error.error_type))
        except ConnectionError:
            logger.debug("client gone before its error")

    async def _keep_alive(self) -> None:
        """A comment line per silence. One task a stream, and one number an event, instead of a timer an event."""
        silence_ends = self._keep_alive_seconds
        while True:
            await asyncio.sleep(silence_ends)
            silence_ends = self._last_write_seconds + self._keep_alive_seconds - time.monotonic()
            if silence_ends <= 0:
                self._last_write_seconds = time.monotonic()
                silence_ends = self._keep_alive_seconds
                try:
                    await self.response.write(b":\n\n")
                except ConnectionError:
                    return

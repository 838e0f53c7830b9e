"""EventReader: one request in an engine, read by itself.

In: an engine and a request. Out: its events, to be read in one go or in several; its stream and sequence.
"""

from collections.abc import AsyncIterator

from text_generation_router.engine import Engine
from text_generation_router.sequence import Request, Sequence
from text_generation_router.stream import Mailbox, TokenEvent


class EventReader:
    def __init__(self, engine: Engine, request: Request) -> None:
        self.mailbox = Mailbox()
        (self.stream,) = engine.submit([request], self.mailbox)

    @property
    def sequence(self) -> Sequence:
        return self.stream.sequence

    def cancel(self) -> None:
        self.stream.cancel()

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        """Those that nobody has read yet, up to the last one."""
        finished = False
        while not finished:
            _, event = await self.mailbox.get()
            finished = event.finish_reason is not None
            yield event

"""GenerationStream: one request's tokens on their way from the engine to whoever reads them.

In: token ids with their log-probabilities. Out: TokenEvents with text, the last one with the reason of the end.
Knows nothing of batches, and of HTTP nothing either.
"""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable

from text_generation_router.errors import RequestError
from text_generation_router.sequence import Sequence
from text_generation_router.stopping import FinishReason, StoppingCriteria
from text_generation_router.tokenizer import Tokenizer


@dataclasses.dataclass(slots=True)
class TokenEvent:
    """One generated token. The last one of a stream has `finish_reason` and `generated_text`."""

    token_id: int
    text: str
    logprob: float
    special: bool
    finish_reason: str | None = None
    generated_text: str | None = None


class GenerationStream:
    """Whoever reads it calls `cancel` when done with it, however that came."""

    def __init__(
        self,
        sequence: Sequence,
        criteria: StoppingCriteria,
        tokenizer: Tokenizer,
        on_cancel: Callable[["GenerationStream"], None],
    ) -> None:
        self.sequence = sequence
        self._criteria = criteria
        self._tokenizer = tokenizer
        self._on_cancel = on_cancel
        self._detokenizer = tokenizer.detokenizer()
        self._text = ""
        self._events: asyncio.Queue[TokenEvent | RequestError] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        """
        Raises:
            RequestError: the generation failed.
        """
        finish_reason = None
        while finish_reason is None:
            event = await self._events.get()
            if isinstance(event, RequestError):
                raise event
            yield event
            finish_reason = event.finish_reason

    def cancel(self) -> None:
        self._on_cancel(self)

    @property
    def queue_seconds(self) -> float:
        """How long the request waited until its first step was made, or has been waiting."""
        return (self.sequence.first_scheduled_seconds or time.monotonic()) - self.sequence.arrival_seconds

    def ends_by_token(self, token_id: int) -> FinishReason | None:
        """Why this token is the last one, if it is. Asked once for every token, before its text is made."""
        return self._criteria.ends_by_token(token_id)

    def push(self, token_id: int, logprob: float, reason: FinishReason | None) -> bool:
        """Makes a token's text and passes it on. Returns whether a stop sequence ended the generation."""
        special = token_id in self._tokenizer.special_token_ids
        piece = "" if special else self._detokenizer.push(token_id)
        if reason is not None:
            piece += self._detokenizer.flush()
        piece, stopped = self._criteria.push_text(piece)
        self._text += piece
        reason = stopped or reason
        text = self._tokenizer.token_text(token_id) if special else piece
        self._events.put_nowait(TokenEvent(token_id, text, logprob, special, reason, self._text if reason else None))
        return stopped is not None

    def fail(self, error: RequestError) -> None:
        self._events.put_nowait(error)

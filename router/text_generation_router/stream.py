"""GenerationStream: one request's tokens on their way from the engine to whoever reads them.

In: token ids with their log-probabilities. Out: TokenEvents with text, the last one with the reason of the end, into a
mailbox that may be shared by several streams of one reader. Knows nothing of batches, and of HTTP nothing either.
"""

import asyncio
import collections
import dataclasses
import time
from collections.abc import Callable

from text_generation_router.errors import RequestError
from text_generation_router.sequence import Sequence, TopToken
from text_generation_router.stopping import FinishReason, StoppingCriteria
from text_generation_router.tokenizer import Tokenizer


@dataclasses.dataclass(slots=True)
class TokenEvent:
    """One generated token. The last one of a stream has `finish_reason` and `generated_text`."""

    token_id: int
    text: str  # what became certain with this token: nothing for a special one
    logprob: float
    special: bool
    top_tokens: list[TopToken]
    finish_reason: FinishReason | None = None
    generated_text: str | None = None


class GenerationStream:
    """Whoever reads it calls `cancel` when done with it, however that came."""

    def __init__(
        self,
        sequence: Sequence,
        criteria: StoppingCriteria,
        tokenizer: Tokenizer,
        mailbox: "Mailbox",
        on_cancel: Callable[["GenerationStream"], None],
        begins_text: bool = False,
    ) -> None:
        """`begins_text`: the answer goes on from no prompt, but is a text of its own."""
        self.sequence = sequence
        self._criteria = criteria
        self._tokenizer = tokenizer
        self._mailbox = mailbox
        self._on_cancel = on_cancel
        self._detokenizer = tokenizer.detokenizer()
        self._text = ""
        self._is_at_start = begins_text
        self._num_hidden = 0  # characters at the start of the tokens' text that are not the answer's

    @property
    def queue_seconds(self) -> float:
        """How long the request waited until its first step was made, or has been waiting."""
        return (self.sequence.first_scheduled_seconds or time.monotonic()) - self.sequence.arrival_seconds

    def cancel(self) -> None:
        self._on_cancel(self)

    def ends_by_token(self, token_id: int) -> FinishReason | None:
        """Why this token is the last one, if it is. Asked once for every token, before its text is made."""
        return self._criteria.ends_by_token(token_id)

    def push(self, token_id: int, logprob: float, top_tokens: list[TopToken], reason: FinishReason | None) -> bool:
        """Makes a token's text and passes it on. Returns whether a stop sequence ended the generation."""
        special = token_id in self._tokenizer.special_token_ids
        piece = "" if special else self._detokenizer.push(token_id)
        if reason in (None, "length") and special and self._tokenizer.token_text(token_id) in self.sequence.request.stop:
            reason = "stop_sequence"  # though it has no text
        if reason is not None:
            piece += self._detokenizer.flush()
        piece, stopped = self._criteria.push_text(piece)
        reason = stopped or reason
        if reason is not None and not stopped:
            piece += self._criteria.flush()
        self._text += piece
        if self._is_at_start and not special:
            self._is_at_start = False
            self._num_hidden = int(self._tokenizer.hides_space(token_id))
        generated_text = self._text[self._num_hidden :] if reason else None
        self._mailbox.put(self, TokenEvent(token_id, piece, logprob, special, top_tokens, reason, generated_text))
        return reason == "stop_sequence"

    def fail(self, error: RequestError) -> None:
        self._mailbox.put(self, error)


class Mailbox:
    """What one reader has not read yet, of one or several streams. It does what asyncio.Queue does for one reader, and costs
    a third of it: every token passes here."""

    def __init__(self) -> None:
        self._letters: collections.deque[tuple[GenerationStream, TokenEvent | RequestError]] = collections.deque()
        self._reader: asyncio.Future[None] | None = None

    def put(self, stream: GenerationStream, event: TokenEvent | RequestError) -> None:
        self._letters.append((stream, event))
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def get(self) -> tuple[GenerationStream, TokenEvent]:
        """
        Raises:
            RequestError: one of the generations failed.
        """
        while not self._letters:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        stream, event = self._letters.popleft()
        if isinstance(event, RequestError):
            raise event
        return stream, event

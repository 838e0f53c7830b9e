"""VisibleTokens: which of one answer's tokens are in its text, as far as the text is out.

In: token events, in order. Out: the events of tokens that show: no special ones, and none of a stop sequence that was cut
off. A token whose text is held back, because a stop sequence may begin in it, waits until that is clear.
"""

import collections

from text_generation_router.stream import TokenEvent
from text_generation_router.tokenizer import Tokenizer


class VisibleTokens:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._detokenizer = tokenizer.detokenizer()
        self._waiting: collections.deque[TokenEvent] = collections.deque()
        self._num_characters_ahead = 0  # of text that is out, beyond the tokens that were shown

    def push(self, event: TokenEvent) -> list[TokenEvent]:
        if not event.special:
            self._waiting.append(event)
        self._num_characters_ahead += len(event.text)
        shown = []
        while self._waiting and self._num_characters_ahead > 0:
            shown.append(self._waiting.popleft())
            self._num_characters_ahead -= len(self._detokenizer.push(shown[-1].token_id))
        return shown

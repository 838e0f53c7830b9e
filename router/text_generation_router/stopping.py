"""StoppingCriteria: when one sequence ends, and where its text is cut.

In: its tokens one by one, and the text they turned into. Out: a finish reason, and the text up to the end of a stop
sequence. Two questions, because they are asked at two moments: `ends_by_token` before there is any text, so that the
scheduler can let go of the sequence, and `push_text` after. Knows nothing of tokenizers and queues.
"""

from collections.abc import Collection, Sequence
from typing import Literal

FinishReason = Literal["length", "eos_token", "stop_sequence"]


class StoppingCriteria:
    def __init__(self, max_new_tokens: int, eos_token_ids: Collection[int], stop: Sequence[str] = ()) -> None:
        self._max_new_tokens = max_new_tokens
        self._eos_token_ids = eos_token_ids
        self._stop = stop
        self._num_tokens = 0
        self._num_kept = max(map(len, stop), default=1) - 1
        self._tail = ""  # the last text, as much as a stop sequence that is not complete yet can lie in

    def ends_by_token(self, token_id: int) -> FinishReason | None:
        """Why this token is the last one, or None. To be asked once for every token, in order: it counts them.

        An end-of-sequence token that is also the last allowed one counts as what the model meant: "eos_token".
        """
        self._num_tokens += 1
        if token_id in self._eos_token_ids:
            return "eos_token"
        return "length" if self._num_tokens >= self._max_new_tokens else None

    def push_text(self, new_text: str) -> tuple[str, FinishReason | None]:
        """The part of `new_text` that stays, and "stop_sequence" if one ends in it.

        The stop sequence stays in the text, what follows it does not. A stop sequence may begin in earlier text; when
        several are there, the one that ends first counts.
        """
        if not self._stop or not new_text:
            return new_text, None
        text = self._tail + new_text
        end = self._end_of_stop(text)
        if end is not None:
            return new_text[: end - len(self._tail)], "stop_sequence"
        self._tail = text[len(text) - self._num_kept :] if self._num_kept < len(text) else text
        return new_text, None

    def _end_of_stop(self, text: str) -> int | None:
        """Where in `text` the first stop sequence ends. All matches end in the new part: earlier ones were final."""
        ends = []
        for stop in self._stop:
            # The longest stop sequence sets the tail, so a shorter one would be sought in text that it was sought in.
            found = text.find(stop, max(0, len(self._tail) - len(stop) + 1))
            if found >= 0:
                ends.append(found + len(stop))
        return min(ends, default=None)

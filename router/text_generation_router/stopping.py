"""StoppingCriteria: when one sequence ends, and where its text is cut.

In: its tokens one by one, and the text they turned into. Out: a finish reason, and the text up to the end. Two questions,
because they are asked at two moments: `ends_by_token` before there is any text, so that the scheduler can let go of the
sequence, and `push_text` after. Knows nothing of tokenizers and queues.
"""

from collections.abc import Collection, Sequence
from typing import Literal

FinishReason = Literal["length", "eos_token", "stop_sequence"]


class StoppingCriteria:
    def __init__(
        self, max_new_tokens: int, eos_token_ids: Collection[int], stop: Sequence[str] = (), keep_stop: bool = True
    ) -> None:
        """With `keep_stop` the text ends with the stop sequence, else before it; then text that may be the beginning of one
        is held back until that is clear."""
        self._max_new_tokens = max_new_tokens
        self._eos_token_ids = eos_token_ids
        self._stop = stop
        self._keep_stop = keep_stop
        self._num_tokens = 0
        self._longest = max(map(len, stop), default=1) - 1
        self._seen = ""  # the last text, as much as a stop sequence that is not complete yet can lie in
        self._num_held = 0  # how many characters of that were not passed on

    def ends_by_token(self, token_id: int) -> FinishReason | None:
        """Why this token is the last one, or None. To be asked once for every token, in order: it counts them.

        An end-of-sequence token that is also the last allowed one counts as what the model meant: "eos_token".
        """
        self._num_tokens += 1
        if token_id in self._eos_token_ids:
            return "eos_token"
        return "length" if self._num_tokens >= self._max_new_tokens else None

    def push_text(self, new_text: str) -> tuple[str, FinishReason | None]:
        """The text that is certain now, and "stop_sequence" if one ends in `new_text`; nothing may be pushed after that.

        A stop sequence may begin in earlier text; when several are there, the one that ends first counts.
        """
        if not self._stop or not new_text:
            return new_text, None
        text, num_passed = self._seen + new_text, len(self._seen) - self._num_held
        if match := self._first_stop(text):
            return text[num_passed : match[1] if self._keep_stop else match[0]], "stop_sequence"
        self._num_held = 0 if self._keep_stop else self._num_undecided(text)
        self._seen = text[max(0, len(text) - self._longest) :]
        return text[num_passed : len(text) - self._num_held], None

    def flush(self) -> str:
        """What was held back, when no text follows."""
        held, self._num_held = self._seen[len(self._seen) - self._num_held :], 0
        return held

    def _first_stop(self, text: str) -> tuple[int, int] | None:
        """[start, end) of the stop sequence that ends first, the longest of them. All matches end in the new part: earlier
        ones were final."""
        matches = []
        for stop in self._stop:
            # The longest stop sequence sets what is kept, so a shorter one would be sought in text that it was sought in.
            start = text.find(stop, max(0, len(self._seen) - len(stop) + 1))
            if start >= 0:
                matches.append((start, start + len(stop)))
        return min(matches, key=lambda match: (match[1], match[0]), default=None)

    def _num_undecided(self, text: str) -> int:
        """The length of the longest end of `text` that a stop sequence begins with."""
        for length in range(min(self._longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0

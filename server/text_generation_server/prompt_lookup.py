"""PromptLookup: guesses at a sequence's next tokens, taken from where it said the same before.

In: a sequence's tokens. Out: those that followed the last occurrence of its latest few (prompt lookup decoding, Saxena 2023;
n-gram speculation elsewhere). Guesses cost no model, and change no answer: they are checked before they count.
"""

import itertools

MAX_NGRAM = 3
MIN_NGRAM = 2


class PromptLookup:
    """One sequence's. How many it guesses follows how many were right the last time."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram → the position after its last occurrence but for the newest
        self._num_indexed = 0
        self._num_hopeful = 1

    def guess(self, token_ids: list[int], num_tokens: int) -> list[int]:
        """At most `num_tokens`; `token_ids` may only have grown since the last call. What is known ends with these tokens:
        beyond that the text is guessed to go in circles."""
        self._index(token_ids)
        for size in range(MAX_NGRAM, MIN_NGRAM - 1, -1):
            end = self._ends.get(tuple(token_ids[-size:]))
            if end is not None:
                following = itertools.cycle(token_ids[end:])
                return list(itertools.islice(following, max(0, min(num_tokens, self._num_hopeful))))
        return []

    def learn(self, num_guesses: int, num_right: int) -> None:
        """Twice as many after a full success, else one more than were right: a wrong guess costs a position of a forward."""
        if num_guesses:
            self._num_hopeful = 2 * num_guesses if num_right == num_guesses else num_right + 1

    def _index(self, token_ids: list[int]) -> None:
        """Enters every n-gram that has a token after it."""
        for end in range(max(self._num_indexed, MIN_NGRAM), len(token_ids)):
            for size in range(MIN_NGRAM, min(MAX_NGRAM, end) + 1):
                self._ends[tuple(token_ids[end - size : end])] = end
        self._num_indexed = max(self._num_indexed, len(token_ids))

"""Pace: what steps cost, learned from their results, and what follows for the next ones.

In: how long a step took on the shards, and how much the router worked beside it. Out: how many tokens of prompts a step may
compute beside sequences that decode, and how many tokens the shards should decode on their own. Numbers only, no I/O.
"""

PREFILL_SHARE = 1.5  # of a step without prompts: what prompts may add to a step that others wait for
MIN_PREFILL_TOKENS = 16
MAX_ITERATIONS = 8
WEIGHT = 0.2  # of the latest step in each mean
UNKNOWN = 1 << 30


class Pace:
    def __init__(self) -> None:
        self._decode_seconds: float | None = None  # of a step in which sequences only decode, once
        self._token_seconds: float | None = None  # that one more token of a prompt takes
        self._num_learned: int = UNKNOWN  # tokens of prompts in the latest step that said what one more takes
        self._router_seconds: float | None = None  # of the router's own processor time a step

    @property
    def max_prefill_tokens(self) -> int:
        """In a step in which others decode. As long as nothing is known there is no limit. No more than twice as many as were
        tried: what a few tokens take is hidden behind the reading of the weights, and says too little of many."""
        if self._decode_seconds is None or self._token_seconds is None:
            return UNKNOWN
        affordable = PREFILL_SHARE * self._decode_seconds / max(self._token_seconds, 1 / UNKNOWN)
        return max(MIN_PREFILL_TOKENS, min(int(affordable), 2 * self._num_learned))

    @property
    def num_iterations(self) -> int:
        """As many as the shards need to be busy while the router works on what they decoded before."""
        if not self._decode_seconds or self._router_seconds is None:
            return 1
        return max(1, min(MAX_ITERATIONS, round(self._router_seconds / self._decode_seconds)))

    def learn_decode(self, num_iterations: int, seconds: float) -> None:
        """A step without prompts took `seconds` on the shards."""
        self._decode_seconds = _mean(self._decode_seconds, seconds / num_iterations)

    def learn_prefill(self, num_tokens: int, beside_decodes: bool, seconds: float) -> None:
        """A step with `num_tokens` of prompts. What the sequences that decode in it take is not the prompts'. Of a few tokens
        alone it says nothing: what any step takes is most of it."""
        says_nothing = self._decode_seconds is None if beside_decodes else num_tokens < MIN_PREFILL_TOKENS
        if says_nothing:
            return
        own_seconds = seconds - self._decode_seconds if beside_decodes and self._decode_seconds else seconds
        self._token_seconds = _mean(self._token_seconds, max(0.0, own_seconds) / num_tokens)
        self._num_learned = num_tokens

    def learn_router(self, seconds: float) -> None:
        """The router's own processor time since the result before."""
        self._router_seconds = _mean(self._router_seconds, seconds)


def _mean(mean: float | None, latest: float) -> float:
    return latest if mean is None else (1 - WEIGHT) * mean + WEIGHT * latest

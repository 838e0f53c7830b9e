"""Decoding: what a model with an encoder lays down for the tokens of its decoder, whoever asks.

In: a model's configuration. Out: how its answers begin and end. Knows nothing of tensors.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Decoding:
    start_token_id: int  # what the decoder is given before its first token
    max_new_tokens: int | None = None  # as many as the decoder has positions
    first_token_id: int | None = None  # the only first token there is: a language, say
    last_token_ids: tuple[int, ...] = ()  # of which one ends an answer of the full length
    banned_token_ids: tuple[int, ...] = ()

    def forced(self, num_generated: int, max_new_tokens: int) -> tuple[int, ...]:
        """The tokens of which the next one must be; none: any. `max_new_tokens` 0: nobody knows which is the last."""
        if num_generated == max_new_tokens - 1 and self.last_token_ids:
            return self.last_token_ids
        if num_generated == 0 and self.first_token_id is not None:
            return (self.first_token_id,)
        return ()

"""Prompts: texts of an exact number of tokens that differ from the first token on, or only after a shared beginning.

In: a model's tokenizer. Out: texts. Their words are random letters: a server does the same work for them as for sense.
"""

import random
import string
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

SHARED_TENTHS = 8  # of a prompt's tokens, where prompts share their beginning
WORD_LENGTHS = range(2, 9)
MAX_TRIES = 1000


class Prompts:
    def __init__(self, folder: Path, num_tokens: int, shared_prefix: bool) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._chance = random.Random(0)
        self._num_tokens = num_tokens
        self._shared = ""
        if shared_prefix:
            self._shared = self._cut(self._words(num_tokens), num_tokens * SHARED_TENTHS // 10)

    def __iter__(self) -> Iterator[str]:
        """New ones for ever."""
        while True:
            yield self._make()

    def token_ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def _make(self) -> str:
        for _ in range(MAX_TRIES):
            text = self._cut(self._shared + self._words(self._num_tokens), self._num_tokens)
            if len(self.token_ids(text)) == self._num_tokens:
                return text
        raise ValueError(f"no text of exactly {self._num_tokens} tokens found; its tokenizer does not take its own text back")

    def _words(self, num_words: int) -> str:
        letters = string.ascii_lowercase
        return "".join(
            "".join(self._chance.choices(letters, k=self._chance.choice(WORD_LENGTHS))) + " " for _ in range(num_words)
        )

    def _cut(self, text: str, num_tokens: int) -> str:
        """The text of its first tokens: usually, but not always, it has that many tokens again."""
        return self._tokenizer.decode(self.token_ids(text)[:num_tokens])

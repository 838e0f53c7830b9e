"""Tokenizer: a model's tokenizer.json: text to token ids off the event loop, and the way back.

In: a folder, then texts. Out: token ids, detokenizers, and what the vocabulary says of its special tokens.
Knows nothing of limits and truncation: that is validation's.
"""

import asyncio
import concurrent.futures
import dataclasses
import pathlib
from collections.abc import Callable
from typing import TypeVar

import tokenizers

from text_generation_router.detokenizer import Detokenizer, TokenBytes
from text_generation_router.errors import ConfigurationError

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, slots=True)
class TokenSpan:
    """A token and the characters [start, end) of the text that it stands for."""

    token_id: int
    start: int
    end: int


class Tokenizer:
    """Nothing may be asked of it before `load`."""

    def __init__(self, num_workers: int) -> None:
        self.special_token_ids: frozenset[int] = frozenset()
        self._tokenizer: tokenizers.Tokenizer
        self._token_bytes: TokenBytes
        self._special_texts: dict[int, str] = {}
        self._workers = concurrent.futures.ThreadPoolExecutor(num_workers, thread_name_prefix="tokenizer")

    def load(self, folder: pathlib.Path) -> None:
        """Raises: ConfigurationError when the folder has no tokenizer.json that can be read."""
        self._tokenizer = _load(folder)
        self._token_bytes = TokenBytes(self._tokenizer)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special_texts = {token_id: token.content for token_id, token in added.items() if token.special}
        self.special_token_ids = frozenset(self._special_texts)

    async def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids, with the special tokens that the model's tokenizer puts around a text unless told otherwise."""
        return await self.in_worker(self._encode, text, add_special_tokens)

    async def encode_spans(self, text: str, add_special_tokens: bool = True) -> list[TokenSpan]:
        """The same with each token's place in the text."""
        return await self.in_worker(self._encode_spans, text, add_special_tokens)

    async def in_worker(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Runs what may take long in one of the threads that tokenize, off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, function, *arguments)

    def detokenizer(self) -> Detokenizer:
        """A fresh one, for the tokens that follow one prompt."""
        return Detokenizer(self._token_bytes)

    def decode(self, token_ids: list[int]) -> str:
        """The whole text of a prompt that came as token ids, special tokens included."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)

    def token_text(self, token_id: int) -> str:
        """What one token looks like by itself: `</s>`, ` Rome`; U+FFFD where it is a part of a character."""
        return self.token_bytes(token_id).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text. Those of a special token are its name's."""
        special = self._special_texts.get(token_id)
        return self._token_bytes[token_id] if special is None else special.encode()

    def hides_space(self, token_id: int) -> bool:
        """Whether the token begins with a space that is not there where a text begins with the token: some tokenizers put one
        before every text, and take it away again."""
        return self.token_bytes(token_id).startswith(b" ") and not self._tokenizer.decode([token_id]).startswith(" ")

    def close(self) -> None:
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        # The library lets other threads run only in its batch calls; the fast one leaves out offsets, of no use here.
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

    def _encode_spans(self, text: str, add_special_tokens: bool) -> list[TokenSpan]:
        encoding = self._tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)[0]
        return [TokenSpan(token_id, *offsets) for token_id, offsets in zip(encoding.ids, encoding.offsets, strict=True)]


def _load(folder: pathlib.Path) -> tokenizers.Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ConfigurationError(f"there is no tokenizer.json in {folder}: give the folder of the model that is served")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more special for a file that it cannot read
        raise ConfigurationError(f"{path} cannot be read as a tokenizer: {error}") from error
    tokenizer.no_truncation()  # files saved after training may cut every text, or fill it up, to a fixed length
    tokenizer.no_padding()
    return tokenizer

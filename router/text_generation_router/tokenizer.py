"""Tokenizer: a model's tokenizer.json: text to token ids off the event loop, and the way back.

In: a folder, then texts. Out: token ids, detokenizers, and what the vocabulary says of its special tokens.
Knows nothing of limits and truncation: that is validation's.
"""

import asyncio
import concurrent.futures
import pathlib

import tokenizers

from text_generation_router.detokenizer import Detokenizer, TokenBytes
from text_generation_router.errors import ConfigurationError


class Tokenizer:
    def __init__(self, folder: str, num_workers: int) -> None:
        """Raises: ConfigurationError when the folder has no tokenizer.json that can be read."""
        self._tokenizer = _load(pathlib.Path(folder))
        self._token_bytes = TokenBytes(self._tokenizer)
        self._workers = concurrent.futures.ThreadPoolExecutor(num_workers, thread_name_prefix="tokenizer")
        added = self._tokenizer.get_added_tokens_decoder()
        self._special_texts = {token_id: token.content for token_id, token in added.items() if token.special}
        self.special_token_ids = frozenset(self._special_texts)

    async def encode(self, text: str) -> list[int]:
        """Token ids with the special tokens that the model's tokenizer puts around a text."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, self._encode, text)

    def detokenizer(self) -> Detokenizer:
        """A fresh one, for the tokens that follow one prompt."""
        return Detokenizer(self._token_bytes)

    def token_text(self, special_token_id: int) -> str:
        """What a special token, one of `special_token_ids`, looks like: `</s>`."""
        return self._special_texts[special_token_id]

    def close(self) -> None:
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _encode(self, text: str) -> list[int]:
        # The library lets other threads run only in its batch calls; the fast one leaves out offsets, of no use here.
        return self._tokenizer.encode_batch_fast([text])[0].ids


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

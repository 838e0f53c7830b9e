"""Detokenizer: one sequence's token ids to text, token by token, never half a character.

In: token ids. Out: the text that is certain now. Each token is turned into the bytes that it adds in the middle of a
text (`TokenBytes`), and an incremental UTF-8 decoder turns those into characters. So the pieces add up to the whole
text, what follows a prompt keeps its leading space, and nothing is held back for longer than a character has bytes: what
is no character becomes U+FFFD at once. Knows nothing of requests; imports the tokenizers library only.
"""

import codecs
import re

import tokenizers

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Detokenizer:
    def __init__(self, token_bytes: "TokenBytes") -> None:
        self._token_bytes = token_bytes
        self._inside_character = False
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that became certain with this token: "" inside a character, and for special tokens."""
        token = self._token_bytes[token_id]
        if token.isascii() and not self._inside_character:
            return token.decode()  # as most are, and quicker
        text = self._decoder.decode(token)
        self._inside_character = bool(self._decoder.getstate()[0])
        return text

    def flush(self) -> str:
        """What is left when no token follows: "" or the U+FFFD of a character that was begun."""
        return self._decoder.decode(b"", final=True)


class TokenBytes(dict[int, bytes]):
    """The bytes that each token adds to a text that already has one, found when first asked for.

    Decoding a token beside another one shows them for every kind of decoder (byte level, metaspace, word pieces),
    leading space included. Only parts of a character have no text of their own; their bytes are in the token's name, as
    `<0xE2>` or in the alphabet of byte-level tokenizers. Special tokens and ids without a token add nothing.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._anchor_ids = tokenizer.encode("a", add_special_tokens=False).ids
        self._anchor_text = self._decode(self._anchor_ids)

    def __missing__(self, token_id: int) -> bytes:
        text = self._decode([*self._anchor_ids, token_id])[len(self._anchor_text) :]
        self[token_id] = self._name_bytes(token_id) if "\ufffd" in text else text.encode()
        return self[token_id]

    def _name_bytes(self, token_id: int) -> bytes:
        name = self._tokenizer.id_to_token(token_id) or ""
        if byte := _BYTE_FALLBACK.fullmatch(name):
            return bytes.fromhex(byte[1])
        if all(character in _BYTE_OF_CHARACTER for character in name):
            return bytes(_BYTE_OF_CHARACTER[character] for character in name)
        return name.encode()

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)


def _byte_level_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary: itself if it prints, else one from U+0100 on.

    From GPT-2's published encoder, https://github.com/openai/gpt-2/blob/master/src/encoder.py.
    """
    printing = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(256 + rank): byte for rank, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_level_alphabet()

"""TokenLogprobs: tokens and how likely they were, in the four parallel lists that OpenAI's completions have.

In: a prompt's tokens and generated ones, in order. Out: the lists. Knows nothing of HTTP.
"""

from text_generation_router.api.visible_tokens import VisibleTokens
from text_generation_router.schema.completions import CompletionLogprobs
from text_generation_router.sequence import Sequence, TopToken
from text_generation_router.stream import TokenEvent
from text_generation_router.tokenizer import Tokenizer


class TokenLogprobs:
    def __init__(self, tokenizer: Tokenizer, num_hidden: int = 0) -> None:
        """`num_hidden`: characters of the first tokens that the whole text does not begin with."""
        self._tokenizer = tokenizer
        self._detokenizer = tokenizer.detokenizer()
        self._visible = VisibleTokens(tokenizer)
        self._offset = -num_hidden  # in characters, of the whole text
        self._lists = CompletionLogprobs([], [], [], [])

    def add_prompt(self, sequence: Sequence, text: str) -> None:
        """`text` is what is shown of it. A prompt that was not rated counts for the offsets of what follows."""
        for position, token_id in enumerate(sequence.request.prompt_token_ids):
            score, length = sequence.prompt_scores.get(position), self._length_in(text, token_id)
            if score is not None:
                self._add(token_id, length, score.logprob, score.top_tokens)
            elif sequence.request.prompt_logprobs:
                self._add(token_id, length, None, [])
            else:
                self._offset += length
        self._offset = len(text)

    def add_token(self, event: TokenEvent) -> None:
        for shown in self._visible.push(event):
            self._add(shown.token_id, len(self._text(shown.token_id)), shown.logprob, shown.top_tokens)

    def take(self) -> CompletionLogprobs:
        """What was added since the last time."""
        taken, self._lists = self._lists, CompletionLogprobs([], [], [], [])
        return taken

    def _add(self, token_id: int, length: int, logprob: float | None, top_tokens: list[TopToken]) -> None:
        """A token is among its own alternatives, whether or not it is one of the most likely. `length` is its text's."""
        lists = self._lists
        lists.text_offset.append(max(0, self._offset))
        lists.token_logprobs.append(logprob)
        lists.tokens.append(self._name(token_id))
        alternatives: dict[str, float | None] = {self._name(token_id): logprob}
        alternatives.update((self._name(top_id), top_logprob) for top_id, top_logprob in top_tokens)
        lists.top_logprobs.append(None if logprob is None else alternatives)
        self._offset += length

    def _length_in(self, text: str, token_id: int) -> int:
        """Of what a prompt's token is in the text from the present offset on. What tokenizers put before a text, special tokens
        or a space, is not in it."""
        own = self._text(token_id)
        if not text.startswith(own, self._offset):
            if token_id in self._tokenizer.special_token_ids:
                return 0
            if own.startswith(" ") and text.startswith(own[1:], self._offset):
                return len(own) - 1
        return len(own)

    def _text(self, token_id: int) -> str:
        if token_id in self._tokenizer.special_token_ids:
            return self._tokenizer.token_text(token_id)
        return self._detokenizer.push(token_id)

    def _name(self, token_id: int) -> str:
        """Parts of characters by their bytes: several tokens must not have one name."""
        try:
            return self._tokenizer.token_bytes(token_id).decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self._tokenizer.token_bytes(token_id))

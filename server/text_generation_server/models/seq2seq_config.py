"""Seq2seqConfig: what the runner needs to know of a model with an encoder, read off transformers' configurations.

In: a transformers config and generation config. Out: sizes, and how answers begin and end. Knows nothing of weights.
"""

import dataclasses
from pathlib import Path
from typing import Any

import transformers

from text_generation_server.decoding import Decoding
from text_generation_server.errors import ModelError
from text_generation_server.models.decoder_config import DEFAULT_MAX_POSITIONS


@dataclasses.dataclass(frozen=True, slots=True)
class Seq2seqConfig:
    """Positions are None where distances stand for them: there is no last one."""

    vocab_size: int
    encoder_positions: int | None
    decoder_positions: int | None
    usual_positions: int

    @classmethod
    def from_transformers(cls, config: Any, vocab_size: int) -> "Seq2seqConfig":
        """`vocab_size` is the head's."""
        usual = max(DEFAULT_MAX_POSITIONS, getattr(config, "n_positions", None) or 0)
        return cls(vocab_size, _positions(config, "encoder"), _positions(config, "decoder"), usual)

    @property
    def max_positions(self) -> int:
        """Of a prompt and its answer: each has positions of its own."""
        return (self.encoder_positions or self.usual_positions) + (self.decoder_positions or self.usual_positions)


def _positions(config: Any, part: str) -> int | None:
    own = getattr(config, f"max_{part}_position_embeddings", None)
    return own or getattr(_part(config, part), "max_position_embeddings", None)


def _part(config: Any, name: str) -> Any:
    """Some have a configuration for each part."""
    own = getattr(config, name, None)
    return getattr(own, "text_config", None) or own or config


def check_vocabularies(config: Any, vocab_size: int) -> None:
    """
    Raises:
        ModelError: the encoder knows fewer tokens than the head says, and there is one tokenizer for both.
    """
    known = _part(config, "encoder").vocab_size
    if known < vocab_size:
        raise ModelError(f"its encoder knows {known} tokens and its decoder {vocab_size}: they must have one vocabulary")


def read_decoding(folder: Path, model_config: Any, max_new_tokens: int | None) -> Decoding:
    """What transformers' `generate` would do by itself, as far as one token after the other goes: no search by beams, no ban
    of repetitions, no least length.

    Raises:
        ModelError: nobody says what the decoder begins with.
    """
    generation = _generation_config(folder)
    start = generation.decoder_start_token_id
    if start is None:
        start = getattr(model_config, "decoder_start_token_id", None)
    if start is None:
        start = generation.bos_token_id
    if start is None:
        raise ModelError(f"{folder} does not say what its decoder begins with (decoder_start_token_id)")
    words = generation.bad_words_ids or []
    return Decoding(
        start_token_id=start,
        max_new_tokens=max_new_tokens,
        first_token_id=generation.forced_bos_token_id,
        last_token_ids=_ids(generation.forced_eos_token_id),
        banned_token_ids=(*(word[0] for word in words if len(word) == 1), *_ids(generation.suppress_tokens)),
    )


def _generation_config(folder: Path) -> Any:
    """Older folders have no file for it, and say it all in config.json."""
    own = "generation_config.json"
    return transformers.GenerationConfig.from_pretrained(folder, own if (folder / own).exists() else "config.json")


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    return () if value is None else tuple(value) if isinstance(value, list) else (value,)

"""DecoderConfig: what the runner needs to know of any decoder, read off transformers' config.

In: a transformers config. Out: sizes. Knows nothing of weights.
"""

import dataclasses
from typing import Any

from text_generation_server.errors import ModelError

DEFAULT_MAX_POSITIONS = 2048
POSITIONS = ("max_position_embeddings", "max_seq_len", "context_length")


@dataclasses.dataclass(frozen=True, slots=True)
class DecoderConfig:
    vocab_size: int
    max_positions: int

    @classmethod
    def from_transformers(cls, config: Any, vocab_size: int) -> "DecoderConfig":
        """`vocab_size` is the head's: configs may name a smaller one. transformers gives older names their common ones."""
        text = config.get_text_config(decoder=True)
        named = (getattr(text, name, None) for name in POSITIONS)
        max_positions = next((count for count in named if count), DEFAULT_MAX_POSITIONS)
        return cls(vocab_size, min(max_positions, _unstretched_positions(text) or max_positions))


def _unstretched_positions(config: Any) -> int | None:
    """With positions of type 'longrope', a text that grows beyond the original length would have all of its keys computed
    anew, stretched: it ends there instead."""
    if "longrope" not in _rope_types(config):
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    return int(original) if original else None


def refuse_dynamic_rope(config: Any) -> None:
    """
    Raises:
        ModelError: a sequence's rotary positions would depend on the longest one that runs with it, or ever ran.
    """
    if "dynamic" in _rope_types(config):
        raise ModelError("rotary positions of type 'dynamic' change with the longest text that has been seen")


def _rope_types(config: Any) -> set[str]:
    """How positions are turned into rotations, in any of the layers."""
    rope = getattr(config, "rope_parameters", None) or {}
    return {part["rope_type"] for part in (rope, *rope.values()) if isinstance(part, dict) and "rope_type" in part}

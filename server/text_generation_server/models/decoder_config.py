"""DecoderConfig: what the runner needs to know of any decoder, read off transformers' config.

In: a transformers config. Out: sizes. Knows nothing of weights.
"""

import dataclasses
from typing import Any

DEFAULT_MAX_POSITIONS = 2048


@dataclasses.dataclass(frozen=True, slots=True)
class DecoderConfig:
    vocab_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int

    @classmethod
    def from_transformers(cls, config: Any, vocab_size: int) -> "DecoderConfig":
        """`vocab_size` is the head's: configs may name a smaller one. transformers gives older names their common ones."""
        num_heads = config.num_attention_heads
        return cls(
            vocab_size=vocab_size,
            num_layers=config.num_hidden_layers,
            num_heads=num_heads,
            num_kv_heads=getattr(config, "num_key_value_heads", None) or num_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // num_heads,
            max_positions=getattr(config, "max_position_embeddings", None) or DEFAULT_MAX_POSITIONS,
        )

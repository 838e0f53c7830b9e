"""LlamaConfig: what config.json says of a Llama, in older files and newer ones, or of a Mistral or Qwen2, built like it.

In: the file's content. Out: sizes and options. Knows nothing of weights.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from text_generation_server.parallel import Parallel

ROPE_TYPES = ("default", "linear", "llama3")
DEFAULTS = {  # where they are others than Llama's
    "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32, "max_position_embeddings": 32768},
}


@dataclasses.dataclass(frozen=True, slots=True)
class LlamaConfig:
    """The part of config.json that the forward needs, with transformers' defaults."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_epsilon: float
    qkv_bias: bool
    output_bias: bool  # of the attention
    mlp_bias: bool
    window: int | None  # positions that one sees; None: all before it
    tie_word_embeddings: bool
    max_positions: int
    rope: Mapping[str, Any]

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "LlamaConfig":
        model_type = config.get("model_type", "llama")
        config = DEFAULTS.get(model_type, {}) | dict(config)
        num_heads = config["num_attention_heads"]
        attention_bias = config.get("attention_bias", False) if model_type == "llama" else False
        return cls(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=num_heads,
            num_kv_heads=config.get("num_key_value_heads") or num_heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // num_heads,
            rms_norm_epsilon=config.get("rms_norm_eps", 1e-6),
            qkv_bias=attention_bias or model_type == "qwen2",
            output_bias=attention_bias,
            mlp_bias=config.get("mlp_bias", False) if model_type == "llama" else False,
            window=config["sliding_window"] if model_type == "mistral" else None,
            tie_word_embeddings=config.get("tie_word_embeddings", False),
            max_positions=config.get("max_position_embeddings", 2048),
            rope=_rope(config),
        )

    def check_split(self, parallel: Parallel) -> None:
        """
        Raises:
            ConfigurationError: it does not split over so many ranks.
        """
        parallel.split(self.num_heads, "attention heads")
        parallel.split_shared(self.num_kv_heads, "key-value heads")
        parallel.split(self.intermediate_size, "MLP columns")


def is_plain(config: Mapping[str, Any]) -> bool:
    """Whether a config.json asks for nothing that is not here."""
    rope = _rope(config)
    is_known = rope["rope_type"] in ROPE_TYPES and rope.get("partial_rotary_factor", 1.0) == 1.0
    see_all = not config.get("use_sliding_window") and set(config.get("layer_types") or ()) <= {"full_attention"}
    return is_known and see_all and config.get("hidden_act", "silu") == "silu" and config.get("quantization_config") is None


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Older files say it in two places and call the type otherwise."""
    older = {"rope_theta": config.get("rope_theta", 10000.0)} | (config.get("rope_scaling") or {})
    rope = older | (config.get("rope_parameters") or {})
    length = config.get("original_max_position_embeddings", config.get("max_position_embeddings"))
    return {"rope_type": rope.get("type", "default"), "original_max_position_embeddings": length} | rope

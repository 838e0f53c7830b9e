"""BLOOM, BLOOMZ, every size: the wiring, after the published checkpoints (BigScience 2022, arXiv:2211.05100).

In: config.json, weights, this rank's place. Out: a model that maps packed token ids to hidden states, and rows of hidden
states to this rank's logits. Attention, collectives and storage are the layers' business.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from text_generation_server.attention import make_attention
from text_generation_server.attention.context import ForwardContext
from text_generation_server.attention.kind import Attend, Attention, AttentionKind
from text_generation_server.kv_cache import KVCache, KVShape
from text_generation_server.layers.activation import Activation
from text_generation_server.layers.alibi import alibi_slopes
from text_generation_server.layers.embedding import VocabEmbedding, load_head
from text_generation_server.layers.linear import Linear, RowLinear, load_column_linear
from text_generation_server.layers.normed import Chain, LayerNorm, NormedLinear
from text_generation_server.models.contract import PagedModel
from text_generation_server.parallel import Parallel
from text_generation_server.weights import Weights


@dataclasses.dataclass(frozen=True, slots=True)
class BloomConfig:
    """The part of config.json that the forward needs; published checkpoints use older names for some of it."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    layer_norm_epsilon: float
    residual_after_layer_norm: bool
    tie_word_embeddings: bool
    max_positions: int

    @classmethod
    def from_json(cls, config: dict[str, Any]) -> "BloomConfig":
        return cls(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"] if "hidden_size" in config else config["n_embed"],
            num_layers=config["n_layer"] if "n_layer" in config else config["num_hidden_layers"],
            num_heads=config["n_head"] if "n_head" in config else config["num_attention_heads"],
            layer_norm_epsilon=config.get("layer_norm_epsilon", 1e-5),
            residual_after_layer_norm=config.get("apply_residual_connection_post_layernorm", False),
            tie_word_embeddings=config.get("tie_word_embeddings", True),
            max_positions=config.get("seq_length", 2048),  # ALiBi has no hard limit; this is what it was trained on
        )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    def check_split(self, parallel: Parallel) -> None:
        """
        Raises:
            ConfigurationError: it does not split over so many ranks.
        """
        parallel.split(self.num_heads, "attention heads")


class Bloom(PagedModel):
    prefix = "transformer."
    config_class = BloomConfig
    fixed_launches = True

    def __init__(self, config: BloomConfig, weights: Weights, parallel: Parallel, quantize: str | None) -> None:
        heads = parallel.split(config.num_heads, "attention heads")
        self.config = config
        self.dtype = weights.dtype
        self.kv_shapes = [KVShape(heads.stop - heads.start, config.head_dim, config.head_dim)] * config.num_layers
        self.slopes = alibi_slopes(config.num_heads)[heads].to(weights.device)
        vocabulary = (config.vocab_size, config.hidden_size, parallel)
        self.word_embeddings = VocabEmbedding(weights, "word_embeddings.weight", *vocabulary)
        # The largest matrix first: while it is put in order it is there twice, and nothing else should be there yet.
        self.lm_head = load_head(weights, "lm_head.weight", self.word_embeddings, config.tie_word_embeddings, quantize)
        self.word_embeddings_layernorm = _load_norm(weights, "word_embeddings_layernorm", config)
        layers = tqdm(range(config.num_layers), desc="loading layers", delay=1, disable=not parallel.is_first)
        self.layers = [BloomLayer(config, weights, layer, heads, parallel, quantize) for layer in layers]
        self.rests = [layer.rest(self.layers[layer.index + 1 :]) for layer in self.layers]
        self._normed_head = NormedLinear(_load_norm(weights, "ln_f", config), self.lm_head)

    def make_attention(self, cache: KVCache) -> Attention:
        return make_attention(cache, self.slopes)

    def forward(self, token_ids: torch.Tensor, context: ForwardContext, attention: Attention) -> torch.Tensor:
        """token_ids [num_tokens] → hidden states [num_wanted, hidden_size], before the last layer norm."""
        attend = attention.bind(context, self.dtype)
        embedded = self.word_embeddings_layernorm(self.word_embeddings(token_ids))
        hidden, output = self.layers[0].query_key_value(embedded)
        for layer, rest in zip(self.layers[:-1], self.rests[:-1], strict=True):
            hidden, output = rest(hidden, layer.attend(output, attend))
        output = self.layers[-1].attend(output, attend)
        # Behind the last attention nobody looks at other tokens.
        hidden, output = context.pick_wanted(hidden), context.pick_wanted(output)
        return torch.add(*self.rests[-1](hidden, output)) if len(hidden) else hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [num_rows, hidden_size] → this rank's logits [num_rows, vocab_size_local], float32."""
        _, logits = self._normed_head(hidden)
        return logits.float()

    @property
    def weight_bytes(self) -> int:
        """What the matrices that every decode step reads occupy."""
        return self.lm_head.weight_bytes + sum(linear.weight_bytes for layer in self.layers for linear in layer.linears)


class BloomLayer:
    def __init__(
        self, config: BloomConfig, weights: Weights, layer: int, heads: slice, parallel: Parallel, quantize: str | None
    ) -> None:
        self.index = layer
        self.attention_kind = AttentionKind(scale=config.head_dim**-0.5)
        self.head_dim = config.head_dim
        name, hidden = f"h.{layer}", config.hidden_size
        # The checkpoint fuses query, key and value head by head, [num_heads, 3, head_dim]: a rank's heads are neighbours.
        fused = slice(heads.start * 3 * config.head_dim, heads.stop * 3 * config.head_dim)
        columns = slice(heads.start * config.head_dim, heads.stop * config.head_dim)
        inner = parallel.split(4 * hidden, "MLP columns")
        qkv, dense = f"{name}.self_attention.query_key_value", f"{name}.self_attention.dense"
        up, down = f"{name}.mlp.dense_h_to_4h", f"{name}.mlp.dense_4h_to_h"
        self.query_key_value = NormedLinear(
            _load_norm(weights, f"{name}.input_layernorm", config),
            load_column_linear(weights, qkv, 3 * hidden, hidden, fused, quantize),
            config.residual_after_layer_norm,
        )
        self.dense = RowLinear(weights, dense, hidden, hidden, columns, parallel, quantize)
        self.dense_h_to_4h = NormedLinear(
            _load_norm(weights, f"{name}.post_attention_layernorm", config),
            load_column_linear(weights, up, 4 * hidden, hidden, inner, quantize, Activation.GELU),
            config.residual_after_layer_norm,
        )
        self.dense_4h_to_h = RowLinear(weights, down, hidden, 4 * hidden, inner, parallel, quantize)

    @property
    def linears(self) -> list[Linear]:
        return [self.query_key_value.linear, self.dense.linear, self.dense_h_to_4h.linear, self.dense_4h_to_h.linear]

    def attend(self, qkv: torch.Tensor, attend: Attend) -> torch.Tensor:
        """qkv [num_tokens, num_heads * 3 * head_dim] → attended values [num_tokens, num_heads * head_dim]."""
        query, key, value = qkv.view(len(qkv), -1, 3, self.head_dim).unbind(2)
        return attend(self.index, query, key, value, self.attention_kind).flatten(1)

    def rest(self, following: Sequence["BloomLayer"]) -> Chain:
        """What comes between this layer's attention and that of the next one, if one follows."""
        qkv = [layer.query_key_value for layer in following[:1]]
        return Chain([self.dense, self.dense_h_to_4h, self.dense_4h_to_h, *qkv])


def _load_norm(weights: Weights, name: str, config: BloomConfig) -> LayerNorm:
    weight, bias = (weights.load(f"{name}.{part}", (config.hidden_size,)) for part in ("weight", "bias"))
    return LayerNorm(weight, bias, config.layer_norm_epsilon)

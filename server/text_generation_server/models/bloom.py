"""BLOOM, BLOOMZ, every size: the wiring, after the published checkpoints (BigScience 2022, arXiv:2211.05100).

In: config.json, weights, this rank's place. Out: a model that maps packed token ids to hidden states, and rows of hidden
states to this rank's logits. Attention, collectives and storage are the layers' business.
"""

import dataclasses
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

from text_generation_server import kernels
from text_generation_server.attention import make_attention
from text_generation_server.attention.context import ForwardContext
from text_generation_server.attention.kind import Attend, Attention, AttentionKind
from text_generation_server.kv_cache import KVCache, KVShape
from text_generation_server.layers.alibi import alibi_slopes
from text_generation_server.layers.embedding import VocabEmbedding, VocabHead, is_tied
from text_generation_server.layers.gelu import gelu
from text_generation_server.layers.linear import Linear, RowLinear, load_column_linear
from text_generation_server.layers.traced import traced
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
        vocabulary = ("word_embeddings.weight", config.vocab_size, config.hidden_size, parallel)
        self.word_embeddings = VocabEmbedding(weights, *vocabulary)
        # The largest matrix first: while it is put in order it is there twice, and nothing else should be there yet.
        self.lm_head = self._load_head(weights, parallel, quantize)
        self.word_embeddings_layernorm = LayerNorm(weights, "word_embeddings_layernorm", config)
        layers = tqdm(range(config.num_layers), desc="loading layers", delay=1, disable=not parallel.is_first)
        self.layers = [BloomLayer(config, weights, layer, heads, parallel, quantize) for layer in layers]
        self.ln_f = LayerNorm(weights, "ln_f", config)
        hidden = torch.zeros(2, config.hidden_size, dtype=weights.dtype, device=weights.device)
        self._call_head = traced(torch.nn.Sequential(self.ln_f, self.lm_head), parallel.world_size, hidden)

    def make_attention(self, cache: KVCache) -> Attention:
        return make_attention(cache, self.slopes)

    def forward(self, token_ids: torch.Tensor, context: ForwardContext, attention: Attention) -> torch.Tensor:
        """token_ids [num_tokens] → hidden states [num_tokens, hidden_size], before the last layer norm."""
        attend = attention.bind(context, self.dtype)
        hidden = self.word_embeddings_layernorm(self.word_embeddings(token_ids))
        update = torch.zeros_like(hidden)
        for layer in self.layers:
            hidden, update = layer.forward(hidden, update, attend)
        return hidden + update

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [num_rows, hidden_size] → this rank's logits [num_rows, vocab_size_local], float32."""
        logits: torch.Tensor = self._call_head(hidden)
        return logits

    @property
    def weight_bytes(self) -> int:
        """What the matrices that every decode step reads occupy."""
        return self.lm_head.linear.weight_bytes + sum(linear.weight_bytes for layer in self.layers for linear in layer.linears)

    def _load_head(self, weights: Weights, parallel: Parallel, quantize: str | None) -> VocabHead:
        vocabulary = (self.config.vocab_size, self.config.hidden_size, parallel)
        head, table = "lm_head.weight", None
        if self.config.tie_word_embeddings and is_tied(weights, head, "word_embeddings.weight", *vocabulary):
            head, table = "word_embeddings.weight", self.word_embeddings.table if weights.device.type == "cuda" else None
        return VocabHead(weights, head, *vocabulary, table, quantize)


class BloomLayer:
    def __init__(
        self, config: BloomConfig, weights: Weights, layer: int, heads: slice, parallel: Parallel, quantize: str | None
    ) -> None:
        self.index = layer
        self.attention_kind = AttentionKind(scale=config.head_dim**-0.5)
        self.before = BeforeAttention(config, weights, f"h.{layer}", heads, quantize)
        self.after = AfterAttention(config, weights, f"h.{layer}", heads, parallel, quantize)
        hidden = torch.zeros(2, config.hidden_size, dtype=weights.dtype, device=weights.device)
        attended = hidden.new_zeros(2, heads.stop - heads.start, config.head_dim)
        self._call_before = traced(self.before, parallel.world_size, hidden, hidden)
        self._call_after = traced(self.after, parallel.world_size, hidden, attended)

    @property
    def linears(self) -> list[Linear]:
        before, after = self.before, self.after
        return [before.query_key_value, after.dense.linear, after.dense_h_to_4h, after.dense_4h_to_h.linear]

    def forward(
        self, hidden: torch.Tensor, update: torch.Tensor, attend: Attend
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden, update [num_tokens, hidden_size] → the two whose sum comes next. Sums are left to the layer norms."""
        residual, query, key, value = self._call_before(hidden, update)
        attended = attend(self.index, query, key, value, self.attention_kind)
        hidden, update = self._call_after(residual, attended)
        return hidden, update


class BeforeAttention(torch.nn.Module):
    def __init__(self, config: BloomConfig, weights: Weights, name: str, heads: slice, quantize: str | None) -> None:
        super().__init__()
        # The checkpoint fuses query, key and value head by head, [num_heads, 3, head_dim]: a rank's heads are neighbours.
        fused = slice(heads.start * 3 * config.head_dim, heads.stop * 3 * config.head_dim)
        qkv, hidden = f"{name}.self_attention.query_key_value", config.hidden_size
        self.head_dim = config.head_dim
        self.residual_after_layer_norm = config.residual_after_layer_norm
        self.input_layernorm = LayerNorm(weights, f"{name}.input_layernorm", config)
        self.query_key_value = load_column_linear(weights, qkv, 3 * hidden, hidden, fused, quantize)

    def forward(
        self, hidden: torch.Tensor, update: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """→ the residual [num_tokens, hidden_size], and query, key and value [num_tokens, num_heads_local, head_dim]."""
        hidden, normed = self.input_layernorm.add(hidden, update)
        query, key, value = self.query_key_value(normed).unflatten(-1, (-1, 3, self.head_dim)).unbind(2)
        return normed if self.residual_after_layer_norm else hidden, query, key, value


class AfterAttention(torch.nn.Module):
    def __init__(
        self, config: BloomConfig, weights: Weights, name: str, heads: slice, parallel: Parallel, quantize: str | None
    ) -> None:
        super().__init__()
        hidden = config.hidden_size
        columns = slice(heads.start * config.head_dim, heads.stop * config.head_dim)
        inner = parallel.split(4 * hidden, "MLP columns")
        dense, up, down = f"{name}.self_attention.dense", f"{name}.mlp.dense_h_to_4h", f"{name}.mlp.dense_4h_to_h"
        self.residual_after_layer_norm = config.residual_after_layer_norm
        self.dense = RowLinear(weights, dense, hidden, hidden, columns, parallel, quantize)
        self.post_attention_layernorm = LayerNorm(weights, f"{name}.post_attention_layernorm", config)
        self.dense_h_to_4h = load_column_linear(weights, up, 4 * hidden, hidden, inner, quantize)
        self.dense_4h_to_h = RowLinear(weights, down, hidden, 4 * hidden, inner, parallel, quantize)

    def forward(self, residual: torch.Tensor, attended: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """residual [num_tokens, hidden_size], attended [num_tokens, num_heads_local, head_dim] → the two whose sum is next."""
        hidden, normed = self.post_attention_layernorm.add(residual, self.dense(attended.flatten(1)))
        residual = normed if self.residual_after_layer_norm else hidden
        return residual, self.dense_4h_to_h(gelu(self.dense_h_to_4h(normed)))


class LayerNorm(torch.nn.Module):
    def __init__(self, weights: Weights, name: str, config: BloomConfig) -> None:
        super().__init__()
        self.weight = weights.load(f"{name}.weight", (config.hidden_size,))
        self.bias = weights.load(f"{name}.bias", (config.hidden_size,))
        self.epsilon = config.layer_norm_epsilon
        self.fused = _import_fused(weights.device)

    def add(self, x: torch.Tensor, update: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x + update, and the norm of it."""
        if self.fused:
            return self.fused.add_and_norm(x, update, self.weight, self.bias, self.epsilon)
        total = x + update
        return total, self(total)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


def _import_fused(device: torch.device) -> ModuleType | None:
    """Our kernel for both at once, where it runs."""
    if not kernels.run_on(device):
        return None
    from text_generation_server.layers import fused

    return fused

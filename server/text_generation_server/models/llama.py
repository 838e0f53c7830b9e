"""Llama, every size, and what is built like it: the wiring (Touvron et al. 2023, arXiv:2302.13971).

In: config.json, weights, this rank's place. Out: a model that maps packed token ids to hidden states, and rows of hidden
states to this rank's logits. What a config may ask for beyond this, the adapter of transformers' modules serves.
"""

import dataclasses
import functools

import torch
import torch.nn.functional as F
from tqdm import tqdm

from text_generation_server.attention import make_attention
from text_generation_server.attention.context import ForwardContext
from text_generation_server.attention.kind import Attend, Attention, AttentionKind
from text_generation_server.kv_cache import KVCache, KVShape
from text_generation_server.layers.embedding import VocabEmbedding, VocabHead
from text_generation_server.layers.linear import Linear, Part, RowLinear, load_stacked_linear
from text_generation_server.layers.rms_norm import RmsNorm
from text_generation_server.layers.rotary import Rotary, pair_halves, turn
from text_generation_server.models.contract import PagedModel
from text_generation_server.models.llama_config import LlamaConfig
from text_generation_server.parallel import Parallel
from text_generation_server.weights import Weights


class Llama(PagedModel):
    prefix = "model."
    config_class = LlamaConfig

    def __init__(self, config: LlamaConfig, weights: Weights, parallel: Parallel, quantize: str | None) -> None:
        kv_heads = parallel.split_shared(config.num_kv_heads, "key-value heads")
        self.config = config
        self.dtype = weights.dtype
        self.kv_shapes = [KVShape(kv_heads.stop - kv_heads.start, config.head_dim, config.head_dim)] * config.num_layers
        vocabulary = (config.vocab_size, config.hidden_size, parallel)
        self.embed_tokens = VocabEmbedding(weights, "embed_tokens.weight", *vocabulary)
        head, table = "lm_head.weight", None
        if config.tie_word_embeddings:
            weights.ignore([head])
            head, table = "embed_tokens.weight", self.embed_tokens.table if weights.device.type == "cuda" else None
        # The largest matrix first: while it is put in order it is there twice, and nothing else should be there yet.
        self.lm_head = VocabHead(weights, head, *vocabulary, table, quantize)
        self.rotary = Rotary(config.head_dim, config.rope, weights.device)
        layers = tqdm(range(config.num_layers), desc="loading layers", delay=1, disable=not parallel.is_first)
        self.layers = [LlamaLayer(config, weights, layer, parallel, quantize) for layer in layers]
        self.norm = _load_norm(weights, "norm", config)
        weights.ignore(f"layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(config.num_layers))  # of old files

    def make_attention(self, cache: KVCache) -> Attention:
        return make_attention(cache)

    def forward(self, token_ids: torch.Tensor, context: ForwardContext, attention: Attention) -> torch.Tensor:
        """token_ids [num_tokens] → hidden states [num_tokens, hidden_size], before the last norm."""
        attend = attention.bind(context, self.dtype)
        hidden, turns = self.embed_tokens(token_ids), self.rotary(context.positions)
        for layer in self.layers:
            hidden = layer.forward(hidden, turns, attend)
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [num_rows, hidden_size] → this rank's logits [num_rows, vocab_size_local], float32."""
        logits: torch.Tensor = self.lm_head(self.norm(hidden))
        return logits

    @property
    def weight_bytes(self) -> int:
        """What the matrices that every decode step reads occupy."""
        return self.lm_head.linear.weight_bytes + sum(linear.weight_bytes for layer in self.layers for linear in layer.linears)


class LlamaLayer:
    def __init__(
        self, config: LlamaConfig, weights: Weights, layer: int, parallel: Parallel, quantize: str | None
    ) -> None:
        name, hidden, head_dim = f"layers.{layer}", config.hidden_size, config.head_dim
        heads = parallel.split(config.num_heads, "attention heads")
        kv_heads = parallel.split_shared(config.num_kv_heads, "key-value heads")
        inner = parallel.split(config.intermediate_size, "MLP columns")
        columns = slice(heads.start * head_dim, heads.stop * head_dim)
        o_proj, down_proj = f"{name}.self_attn.o_proj", f"{name}.mlp.down_proj"
        qkv = [
            _heads(f"{name}.self_attn.q_proj", config.num_heads, heads, head_dim, turned=True),
            _heads(f"{name}.self_attn.k_proj", config.num_kv_heads, kv_heads, head_dim, turned=True),
            _heads(f"{name}.self_attn.v_proj", config.num_kv_heads, kv_heads, head_dim, turned=False),
        ]
        gate_up = [Part(f"{name}.mlp.{part}", config.intermediate_size, inner) for part in ("gate_proj", "up_proj")]
        self.index = layer
        self.num_heads, self.num_kv_heads = heads.stop - heads.start, kv_heads.stop - kv_heads.start
        self.head_dim = head_dim
        self.attention_kind = AttentionKind(scale=head_dim**-0.5)
        self.input_layernorm = _load_norm(weights, f"{name}.input_layernorm", config)
        self.qkv_proj = load_stacked_linear(weights, qkv, hidden, config.attention_bias, quantize)
        attended = config.num_heads * head_dim
        self.o_proj = RowLinear(weights, o_proj, hidden, attended, columns, parallel, quantize, config.attention_bias)
        self.post_attention_layernorm = _load_norm(weights, f"{name}.post_attention_layernorm", config)
        self.gate_up_proj = load_stacked_linear(weights, gate_up, hidden, config.mlp_bias, quantize)
        size = config.intermediate_size
        self.down_proj = RowLinear(weights, down_proj, hidden, size, inner, parallel, quantize, config.mlp_bias)

    @property
    def linears(self) -> list[Linear]:
        return [self.qkv_proj, self.o_proj.linear, self.gate_up_proj, self.down_proj.linear]

    def forward(self, hidden: torch.Tensor, turns: torch.Tensor, attend: Attend) -> torch.Tensor:
        hidden = hidden + self._attention(self.input_layernorm(hidden), turns, attend)
        return hidden + self._mlp(self.post_attention_layernorm(hidden))

    def _attention(self, normed: torch.Tensor, turns: torch.Tensor, attend: Attend) -> torch.Tensor:
        heads = self.qkv_proj(normed).unflatten(-1, (-1, self.head_dim))
        num_turned = self.num_heads + self.num_kv_heads
        turned, value = turn(heads[:, :num_turned], turns), heads[:, num_turned:]
        query, key = turned[:, : self.num_heads], turned[:, self.num_heads :]
        return self.o_proj(attend(self.index, query, key, value, self.attention_kind).flatten(1))

    def _mlp(self, normed: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(normed).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


def _heads(name: str, num_heads: int, own: slice, head_dim: int, turned: bool) -> Part:
    rows = slice(own.start * head_dim, own.stop * head_dim)
    part = Part(name, num_heads * head_dim, rows)
    return dataclasses.replace(part, arrange=functools.partial(pair_halves, head_dim=head_dim)) if turned else part


def _load_norm(weights: Weights, name: str, config: LlamaConfig) -> RmsNorm:
    return RmsNorm(weights.load(f"{name}.weight", (config.hidden_size,)), config.rms_norm_epsilon)

"""Llama, Mistral and Qwen2, every size: the wiring (Touvron et al. 2023, arXiv:2302.13971; Jiang et al. 2023,
arXiv:2310.06825; Yang et al. 2024, arXiv:2407.10671).

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
from text_generation_server.layers.embedding import VocabEmbedding, VocabHead, is_tied
from text_generation_server.layers.linear import Linear, Part, RowLinear, load_stacked_linear
from text_generation_server.layers.rms_norm import RmsNorm
from text_generation_server.layers.rotary import Rotary, pair_halves, turn
from text_generation_server.layers.traced import traced
from text_generation_server.models.contract import PagedModel
from text_generation_server.models.llama_config import LlamaConfig
from text_generation_server.parallel import Parallel
from text_generation_server.weights import Weights


class Llama(PagedModel):
    prefix = "model."
    config_class = LlamaConfig
    fixed_launches = True

    def __init__(self, config: LlamaConfig, weights: Weights, parallel: Parallel, quantize: str | None) -> None:
        _, kv_heads = _split_heads(config, parallel)
        self.config = config
        self.dtype = weights.dtype
        self.kv_shapes = [KVShape(kv_heads.stop - kv_heads.start, config.head_dim, config.head_dim)] * config.num_layers
        vocabulary = (config.vocab_size, config.hidden_size, parallel)
        self.embed_tokens = VocabEmbedding(weights, "embed_tokens.weight", *vocabulary)
        head, table = "lm_head.weight", None
        if config.tie_word_embeddings and is_tied(weights, head, "embed_tokens.weight", *vocabulary):
            head, table = "embed_tokens.weight", self.embed_tokens.table if weights.device.type == "cuda" else None
        # The largest matrix first: while it is put in order it is there twice, and nothing else should be there yet.
        self.lm_head = VocabHead(weights, head, *vocabulary, table, quantize)
        self.rotary = Rotary(config.head_dim, config.rope, weights.device)
        layers = tqdm(range(config.num_layers), desc="loading layers", delay=1, disable=not parallel.is_first)
        self.layers = [LlamaLayer(config, weights, layer, parallel, quantize) for layer in layers]
        self.norm = _load_norm(weights, "norm", config)
        hidden = torch.zeros(2, config.hidden_size, dtype=weights.dtype, device=weights.device)
        self._call_head = traced(torch.nn.Sequential(self.norm, self.lm_head), parallel.world_size, hidden)
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
        logits: torch.Tensor = self._call_head(hidden)
        return logits

    @property
    def weight_bytes(self) -> int:
        """What the matrices that every decode step reads occupy."""
        return self.lm_head.linear.weight_bytes + sum(linear.weight_bytes for layer in self.layers for linear in layer.linears)


class LlamaLayer:
    def __init__(
        self, config: LlamaConfig, weights: Weights, layer: int, parallel: Parallel, quantize: str | None
    ) -> None:
        self.index = layer
        self.attention_kind = AttentionKind(scale=config.head_dim**-0.5, window=config.window)
        self.before = BeforeAttention(config, weights, f"layers.{layer}", parallel, quantize)
        self.after = AfterAttention(config, weights, f"layers.{layer}", parallel, quantize)
        hidden, turns, attended = _examples(config, weights, self.before.num_heads)
        self._call_before = traced(self.before, parallel.world_size, hidden, turns)
        self._call_after = traced(self.after, parallel.world_size, hidden, attended)

    @property
    def linears(self) -> list[Linear]:
        return [self.before.qkv_proj, self.after.o_proj.linear, self.after.gate_up_proj, self.after.down_proj.linear]

    def forward(self, hidden: torch.Tensor, turns: torch.Tensor, attend: Attend) -> torch.Tensor:
        query, key, value = self._call_before(hidden, turns)
        attended = attend(self.index, query, key, value, self.attention_kind)
        output: torch.Tensor = self._call_after(hidden, attended)
        return output


class BeforeAttention(torch.nn.Module):
    def __init__(
        self, config: LlamaConfig, weights: Weights, name: str, parallel: Parallel, quantize: str | None
    ) -> None:
        super().__init__()
        heads, kv_heads = _split_heads(config, parallel)
        qkv = [
            _heads(f"{name}.self_attn.q_proj", config.num_heads, heads, config.head_dim, turned=True),
            _heads(f"{name}.self_attn.k_proj", config.num_kv_heads, kv_heads, config.head_dim, turned=True),
            _heads(f"{name}.self_attn.v_proj", config.num_kv_heads, kv_heads, config.head_dim, turned=False),
        ]
        self.num_heads, self.num_kv_heads = heads.stop - heads.start, kv_heads.stop - kv_heads.start
        self.head_dim = config.head_dim
        self.input_layernorm = _load_norm(weights, f"{name}.input_layernorm", config)
        self.qkv_proj = load_stacked_linear(weights, qkv, config.hidden_size, config.qkv_bias, quantize)

    def forward(self, hidden: torch.Tensor, turns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """hidden [num_tokens, hidden_size] → query, key and value [num_tokens, their heads, head_dim]."""
        heads = self.qkv_proj(self.input_layernorm(hidden)).unflatten(-1, (-1, self.head_dim))
        num_turned = self.num_heads + self.num_kv_heads
        turned = turn(heads[:, :num_turned], turns)
        return turned[:, : self.num_heads], turned[:, self.num_heads :], heads[:, num_turned:]


class AfterAttention(torch.nn.Module):
    def __init__(
        self, config: LlamaConfig, weights: Weights, name: str, parallel: Parallel, quantize: str | None
    ) -> None:
        super().__init__()
        hidden, size = config.hidden_size, config.intermediate_size
        heads, _ = _split_heads(config, parallel)
        columns = slice(heads.start * config.head_dim, heads.stop * config.head_dim)
        inner = parallel.split(size, "MLP columns")
        gate_up = [Part(f"{name}.mlp.{part}", size, inner) for part in ("gate_proj", "up_proj")]
        o_proj, attended = f"{name}.self_attn.o_proj", config.num_heads * config.head_dim
        self.o_proj = RowLinear(weights, o_proj, hidden, attended, columns, parallel, quantize, config.output_bias)
        self.post_attention_layernorm = _load_norm(weights, f"{name}.post_attention_layernorm", config)
        self.gate_up_proj = load_stacked_linear(weights, gate_up, hidden, config.mlp_bias, quantize)
        down_proj = f"{name}.mlp.down_proj"
        self.down_proj = RowLinear(weights, down_proj, hidden, size, inner, parallel, quantize, config.mlp_bias)

    def forward(self, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """hidden [num_tokens, hidden_size], attended [num_tokens, num_heads, head_dim] → the next layer's hidden states."""
        hidden = hidden + self.o_proj(attended.flatten(1))
        gate, up = self.gate_up_proj(self.post_attention_layernorm(hidden)).chunk(2, dim=-1)
        output: torch.Tensor = hidden + self.down_proj(F.silu(gate).mul_(up))
        return output


def _split_heads(config: LlamaConfig, parallel: Parallel) -> tuple[slice, slice]:
    """This rank's heads of queries, and those of keys and values."""
    heads = parallel.split(config.num_heads, "attention heads")
    return heads, parallel.split_shared(config.num_kv_heads, "key-value heads")


def _examples(config: LlamaConfig, weights: Weights, num_heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, turns and attended values of two tokens."""
    zeros = functools.partial(torch.zeros, dtype=weights.dtype, device=weights.device)
    turns = torch.ones(2, 1, config.head_dim // 2, dtype=torch.complex64, device=weights.device)
    return zeros(2, config.hidden_size), turns, zeros(2, num_heads, config.head_dim)


def _heads(name: str, num_heads: int, own: slice, head_dim: int, turned: bool) -> Part:
    rows = slice(own.start * head_dim, own.stop * head_dim)
    part = Part(name, num_heads * head_dim, rows)
    return dataclasses.replace(part, arrange=functools.partial(pair_halves, head_dim=head_dim)) if turned else part


def _load_norm(weights: Weights, name: str, config: LlamaConfig) -> RmsNorm:
    return RmsNorm(weights.load(f"{name}.weight", (config.hidden_size,)), config.rms_norm_epsilon)

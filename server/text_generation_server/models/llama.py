"""Llama, Mistral and Qwen2, every size: the wiring (Touvron et al. 2023, arXiv:2302.13971; Jiang et al. 2023,
arXiv:2310.06825; Yang et al. 2024, arXiv:2407.10671).

In: config.json, weights, this rank's place. Out: a model that maps packed token ids to hidden states, and rows of hidden
states to this rank's logits. What a config may ask for beyond this, the adapter of transformers' modules serves.
"""

import dataclasses
import functools
from collections.abc import Sequence

import torch
from tqdm import tqdm

from text_generation_server.attention import make_attention
from text_generation_server.attention.context import ForwardContext
from text_generation_server.attention.kind import Attend, Attention, AttentionKind
from text_generation_server.kv_cache import KVCache, KVShape
from text_generation_server.layers.activation import Activation
from text_generation_server.layers.embedding import VocabEmbedding, load_head
from text_generation_server.layers.linear import Linear, Part, RowLinear, load_stacked_linear
from text_generation_server.layers.normed import Chain, NormedLinear
from text_generation_server.layers.rms_norm import RmsNorm
from text_generation_server.layers.rotary import Rotary, pair_halves, turn
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
        # The largest matrix first: while it is put in order it is there twice, and nothing else should be there yet.
        self.lm_head = load_head(weights, "lm_head.weight", self.embed_tokens, config.tie_word_embeddings, quantize)
        self.rotary = Rotary(config.head_dim, config.rope, weights.device)
        layers = tqdm(range(config.num_layers), desc="loading layers", delay=1, disable=not parallel.is_first)
        self.layers = [LlamaLayer(config, weights, layer, parallel, quantize) for layer in layers]
        self.rests = [layer.rest(self.layers[layer.index + 1 :]) for layer in self.layers]
        self._normed_head = NormedLinear(_load_norm(weights, "norm", config), self.lm_head)
        weights.ignore(f"layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(config.num_layers))  # of old files

    def make_attention(self, cache: KVCache) -> Attention:
        return make_attention(cache)

    def forward(self, token_ids: torch.Tensor, context: ForwardContext, attention: Attention) -> torch.Tensor:
        """token_ids [num_tokens] → hidden states [num_wanted, hidden_size], before the last norm."""
        attend = attention.bind(context, self.dtype)
        turns = self.rotary(context.positions)
        hidden, output = self.layers[0].qkv_proj(self.embed_tokens(token_ids))
        for layer, rest in zip(self.layers[:-1], self.rests[:-1], strict=True):
            hidden, output = rest(hidden, layer.attend(output, turns, attend))
        output = self.layers[-1].attend(output, turns, attend)
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


class LlamaLayer:
    def __init__(
        self, config: LlamaConfig, weights: Weights, layer: int, parallel: Parallel, quantize: str | None
    ) -> None:
        self.index = layer
        self.attention_kind = AttentionKind(scale=config.head_dim**-0.5, window=config.window)
        heads, kv_heads = _split_heads(config, parallel)
        self.num_heads, self.num_kv_heads = heads.stop - heads.start, kv_heads.stop - kv_heads.start
        self.head_dim = config.head_dim
        name, hidden, size = f"layers.{layer}", config.hidden_size, config.intermediate_size
        attention = f"{name}.self_attn"
        qkv = [
            _heads(f"{attention}.q_proj", config.num_heads, heads, config.head_dim, turned=True),
            _heads(f"{attention}.k_proj", config.num_kv_heads, kv_heads, config.head_dim, turned=True),
            _heads(f"{attention}.v_proj", config.num_kv_heads, kv_heads, config.head_dim, turned=False),
        ]
        inner = parallel.split(size, "MLP columns")
        gate_up = [Part(f"{name}.mlp.{part}", size, inner) for part in ("gate_proj", "up_proj")]
        columns = slice(heads.start * config.head_dim, heads.stop * config.head_dim)
        attended = config.num_heads * config.head_dim
        self.qkv_proj = NormedLinear(
            _load_norm(weights, f"{name}.input_layernorm", config),
            load_stacked_linear(weights, qkv, hidden, config.qkv_bias, quantize),
        )
        self.o_proj = RowLinear(
            weights, f"{attention}.o_proj", hidden, attended, columns, parallel, quantize, config.output_bias
        )
        self.gate_up_proj = NormedLinear(
            _load_norm(weights, f"{name}.post_attention_layernorm", config),
            load_stacked_linear(weights, gate_up, hidden, config.mlp_bias, quantize, Activation.SILU_GATE),
        )
        self.down_proj = RowLinear(weights, f"{name}.mlp.down_proj", hidden, size, inner, parallel, quantize, config.mlp_bias)

    @property
    def linears(self) -> list[Linear]:
        return [self.qkv_proj.linear, self.o_proj.linear, self.gate_up_proj.linear, self.down_proj.linear]

    def attend(self, qkv: torch.Tensor, turns: torch.Tensor, attend: Attend) -> torch.Tensor:
        """qkv [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim] → attended values [num_tokens, num_heads * head_dim]."""
        heads = qkv.view(len(qkv), -1, self.head_dim)
        num_turned = self.num_heads + self.num_kv_heads
        query, key = turn(heads[:, :num_turned], turns).split_with_sizes((self.num_heads, self.num_kv_heads), 1)
        value = heads[:, num_turned:]
        return attend(self.index, query, key, value, self.attention_kind).flatten(1)

    def rest(self, following: Sequence["LlamaLayer"]) -> Chain:
        """What comes between this layer's attention and that of the next one, if one follows."""
        return Chain([self.o_proj, self.gate_up_proj, self.down_proj, *(layer.qkv_proj for layer in following[:1])])


def _split_heads(config: LlamaConfig, parallel: Parallel) -> tuple[slice, slice]:
    """This rank's heads of queries, and those of keys and values."""
    heads = parallel.split(config.num_heads, "attention heads")
    return heads, parallel.split_shared(config.num_kv_heads, "key-value heads")


def _heads(name: str, num_heads: int, own: slice, head_dim: int, turned: bool) -> Part:
    rows = slice(own.start * head_dim, own.stop * head_dim)
    part = Part(name, num_heads * head_dim, rows)
    return dataclasses.replace(part, arrange=functools.partial(pair_halves, head_dim=head_dim)) if turned else part


def _load_norm(weights: Weights, name: str, config: LlamaConfig) -> RmsNorm:
    return RmsNorm(weights.load(f"{name}.weight", (config.hidden_size,)), config.rms_norm_epsilon)

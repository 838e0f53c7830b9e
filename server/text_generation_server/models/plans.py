"""Plans: how types of transformers models split over ranks where transformers itself does not say, or says wastefully.

In: nothing. Out: tables by model type. Their styles are those of transformers' own `tp_plan`, and "fused_qkv" and
"first_rank", which are ours.
"""

ATTENTION = {f"layers.*.self_attn.{name}_proj": "colwise" for name in "qkv"}
LLAMA = ATTENTION | {
    "layers.*.self_attn.o_proj": "rowwise",
    "layers.*.mlp.gate_proj": "colwise",
    "layers.*.mlp.up_proj": "colwise",
    "layers.*.mlp.down_proj": "rowwise",
}
OPT = ATTENTION | {
    "layers.*.self_attn.out_proj": "rowwise",
    "layers.*.fc1": "colwise",
    "layers.*.fc2": "rowwise",
}
BART = OPT | {name.replace("self_attn", "encoder_attn"): how for name, how in OPT.items()}
T5 = {
    **{f"block.*.layer.*.*.{name}": "colwise" for name in "qkv"},
    "block.*.layer.*.*.o": "rowwise",
    "block.*.layer.*.*.relative_attention_bias.weight": "rowwise",  # a column for each head
    **{f"block.*.layer.*.*.{name}": "colwise" for name in ("wi", "wi_0", "wi_1")},
    "block.*.layer.*.*.wo": "rowwise",
}
GPT2 = {
    "h.*.attn.c_attn": "fused_qkv",
    "h.*.attn.c_proj": "rowwise",
    "h.*.mlp.c_fc": "colwise",
    "h.*.mlp.c_proj": "rowwise",
}
GPT_NEOX = {
    "layers.*.self_attn.query_key_value": "colwise",
    "layers.*.self_attn.dense": "rowwise",
    "layers.*.mlp.dense_h_to_4h": "colwise",
    "layers.*.mlp.dense_4h_to_h": "rowwise",
}
PHI3 = {
    "layers.*.self_attn.qkv_proj": "fused_qkv",
    "layers.*.self_attn.o_proj": "rowwise",
    "layers.*.mlp.gate_up_proj": "packed_colwise",
    "layers.*.mlp.down_proj": "rowwise",
}
# Model type → ends of module or parameter names → styles. They go before what transformers says.
PLANS: dict[str, dict[str, str]] = {
    "bart": BART,
    "biogpt": OPT,
    "blenderbot": BART,
    "blenderbot-small": BART,
    "cohere": {f"layers.*.self_attn.{name}_norm.weight": "colwise" for name in "qk"},  # of Command R+, a row for each head
    "falcon": {name.replace("layers", "h").replace("self_attn", "self_attention"): how for name, how in GPT_NEOX.items()}
    | {"h.*.self_attention.query_key_value": "fused_qkv"},
    "glm": {name: how for name, how in PHI3.items() if "mlp" in name},
    "glm4": {name: how for name, how in PHI3.items() if "mlp" in name},
    "gpt2": GPT2,
    "gpt_bigcode": GPT2,
    "gpt_neo": {
        **{f"h.*.attn.attention.{name}_proj": "colwise" for name in "qkv"},
        "h.*.attn.attention.out_proj": "rowwise",
        "h.*.mlp.c_fc": "colwise",
        "h.*.mlp.c_proj": "rowwise",
    },
    "gpt_oss": ATTENTION
    | {
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.self_attn.sinks": "colwise",
        "layers.*.mlp.experts": "moe_tp_experts",
        "layers.*.mlp.experts.gate_up_proj": "rowwise",  # these experts multiply from the left: columns are their output
        "layers.*.mlp.experts.gate_up_proj_bias": "rowwise",
        "layers.*.mlp.experts.down_proj": "colwise",
        "layers.*.mlp.experts.down_proj_bias": "first_rank",
    },
    "gptj": {
        **{f"h.*.attn.{name}_proj": "colwise" for name in "qkv"},
        "h.*.attn.out_proj": "rowwise",
        "h.*.mlp.fc_in": "colwise",
        "h.*.mlp.fc_out": "rowwise",
    },
    "hunyuan_v1_dense": LLAMA,
    "longt5": T5,
    "m2m_100": BART,
    "marian": BART,
    "mbart": BART,
    "modernbert-decoder": ATTENTION
    | {"layers.*.attn.Wo": "rowwise", "layers.*.mlp.Wi": "packed_colwise", "layers.*.mlp.Wo": "rowwise"}
    | {f"layers.*.attn.{name}_proj": "colwise" for name in "qkv"},
    "nemotron": {name: how for name, how in LLAMA.items() if "gate" not in name},
    "mt5": T5,
    "opt": OPT,
    "pegasus": BART,
    "persimmon": GPT_NEOX,
    "phi3": PHI3,
    "phi4_multimodal": PHI3,
    "plbart": BART,
    "stablelm": LLAMA,
    "t5": T5,
    "umt5": T5,
    "xglm": OPT,
}
# What transformers says of them does not hold for ranks that each add up all of it; the last one's embedding has a vector
# beside the table.
ONE_SHARD_ONLY = ("doge", "inkling_text", "longcat_flash", "t5gemma2_decoder")
# Settings with which a plan would be wrong: the attribute of the configuration and the value that is meant.
UNSPLITTABLE = {
    "falcon": ("alibi", True),
    "stablelm": ("qk_layernorm", True),
}
HEAD_WIDTHS = {"gpt2": "split_size", "gpt_bigcode": "embed_dim", "longt5": "inner_dim", "xglm": "embed_dim"}
# Their attention asks the configuration how many heads there are.
ASK_CONFIG = ("phi3", "phi4_multimodal")

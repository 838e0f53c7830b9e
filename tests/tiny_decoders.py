"""Small random decoders of transformers' types, saved as transformers saves them: what differs from one common shape."""

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tiny_models import save_byte_tokenizer

COMMON = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.5,  # so wide that greedy answers are not one repeated token
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ONE_HEAD_EACH = {"num_key_value_heads": None, "head_dim": None}
WINDOW = {"sliding_window": 8}
UNTIED = {"tie_word_embeddings": False}  # a head tied to random embeddings likes to say the last word again
OVERRIDES: dict[str, dict[str, Any]] = {
    "biogpt": ONE_HEAD_EACH | UNTIED,
    "cohere": {"logit_scale": 0.2},
    "cohere2": WINDOW | {"logit_scale": 0.2},
    "ernie4_5_moe": EXPERTS,
    "exaone4": WINDOW,
    "gemma2": WINDOW | UNTIED | {"query_pre_attn_scalar": 8},
    "gemma3_text": WINDOW | UNTIED,
    "glm4_moe": EXPERTS,
    "gpt2": ONE_HEAD_EACH | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neox": ONE_HEAD_EACH,
    "granite": {"logits_scaling": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2},
    "granitemoe": EXPERTS,
    "granitemoeshared": EXPERTS,
    "ministral": WINDOW,
    "mistral": WINDOW,
    "mixtral": EXPERTS,
    "olmo3": WINDOW,
    "olmoe": EXPERTS,
    "opt": ONE_HEAD_EACH | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "persimmon": ONE_HEAD_EACH,
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 16},
    "qwen3_moe": EXPERTS,
    "vaultgemma": WINDOW,
}


def save_random_decoder(folder: Path, model_type: str, **options: Any) -> Path:
    torch.manual_seed(0)
    values = {**COMMON, **OVERRIDES.get(model_type, {}), **options}
    config = CONFIG_MAPPING[model_type](**{name: value for name, value in values.items() if value is not None})
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    save_byte_tokenizer(folder)
    return folder

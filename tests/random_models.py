"""Small random models of every type that transformers can generate text with, saved as transformers saves them."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from tiny_models import save_byte_tokenizer

# Added to the weights as transformers draws them, so that greedy answers are not one repeated token, that no bias is
# zero and that no norm is one.
MATRIX_NOISE = 0.5
VECTOR_NOISE = 0.1

# The sizes, under all the names that they go by. A configuration takes those of the names that it knows.
SIZES = {
    300: "vocab_size src_vocab_size tgt_vocab_size vocab_size_per_layer_input unpadded_vocab_size encoder_hash_byte_group_vocab"
    " pronunciation_vocab_size shape_vocab_size",
    128: "max_position_embeddings max_encoder_position_embeddings max_decoder_position_embeddings n_positions n_ctx"
    " max_seq_len",
    48: "intermediate_size intermediate_size_mlp dense_intermediate_size shared_intermediate_size d_ff dff dim_ff ffn_dim"
    " encoder_ffn_dim decoder_ffn_dim n_inner d_inner ffn_hidden_size feed_forward_size",
    32: "hidden_size d_model n_embd emb_dim embedding_size input_embedding_size output_embedding_size word_embed_proj_dim"
    " hidden_size_global hidden_dim encoder_hidden_size audio_hidden_size output_dim adapter_in_dim adapter_out_dim"
    " adapter_input_size",
    16: "moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size expert_ffn_hidden_size"
    " shared_experts_intermediate_size q_lora_rank kv_lora_rank rel_extent router_hidden_size pronunciation_embed_dim"
    " shape_embed_dim mamba_head_dim",
    8: "head_dim swa_head_dim d_kv kv_channels dim_head attention_head_size v_head_dim qk_nope_head_dim linear_head_dim"
    " linear_key_head_dim linear_value_head_dim index_head_dim indexer_head_dim sliding_window sliding_window_size"
    " attention_window attention_window_size attention_chunk_size window_size local_attention local_attn_chunk_length"
    " lsh_attn_chunk_length context_size index_topk indexer_budget index_n_heads chunk_size mamba_chunk_size block_size"
    " block_multiple_of mamba_d_state state_size ssm_state_size hidden_size_per_layer_input o_lora_rank hc_lowrank local_radius"
    " output_channels downsample_hidden_size nemo_conv_channels ext_pw_out_channel depthwise_separable_out_channel",
    4: "num_attention_heads swa_num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads"
    " attention_heads num_encoder_attention_heads num_decoder_attention_heads num_experts num_local_experts n_routed_experts"
    " moe_num_experts qk_rope_head_dim rotary_dim mamba_n_heads mamba_num_heads linear_num_heads linear_num_value_heads"
    " laurel_rank d_rel gated_norm_rank adapter_rank prompt_length prompt_types global_block_size num_global_tokens"
    " num_buckets",
    2: "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_encoder_layers num_decoder_layers depth"
    " num_blocks num_key_value_heads swa_num_key_value_heads kv_n_heads num_experts_per_tok moe_topk moe_top_k moe_k"
    " top_k_experts n_group indexer_n_heads linear_num_key_heads mamba_n_groups mamba_ngroups n_groups o_groups"
    " zero_expert_num indexer_compress_ratio num_filters",
    1: "topk_group n_shared_experts num_shared_experts moe_num_shared_experts first_k_dense_replace num_dense_layers"
    " num_sparse_encoder_layers num_sparse_decoder_layers indexer_kv_heads",
}
COMMON: dict[str, Any] = {name: size for size, names in SIZES.items() for name in names.split()} | {
    "bos_token_id": 1,
    "decoder_start_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "mlp_layer_types": ["dense", "sparse"],
    # Greedy as it is, without what some types' configurations wish of `generate`
    "forced_eos_token_id": None,
    "begin_suppress_tokens": None,
    "encoder_no_repeat_ngram_size": 0,
    "num_beams": 1,
}

FAMILIES: tuple[tuple[dict[str, Any], str], ...] = (
    (  # Two kinds of attention in turn
        {"layer_types": ["sliding_attention", "full_attention"]},
        "afmoe beam cohere2 cohere2_moe cohere_compass_text cwm dots1 exaone4 exaone_moe flint gemma2 gemma3_text"
        " gemma4_unified_text gpt_oss granite_swa granitemoe_swa kolibri1 laguna mellum mimo_v2_flash modernbert-decoder olmo3"
        " t5gemma2_text t5gemma2_decoder vaultgemma",
    ),
    (  # The last layers have the keys and values of earlier ones
        {
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "global_head_dim": 16,
        },
        "gemma3n_text gemma4_text",
    ),
    (  # A state in turn with attention
        {"layer_types": ["linear_attention", "full_attention"]},
        "bailing_hybrid granitemoehybrid kimi_linear olmo_hybrid qwen3_next qwen3_5_text qwen3_5_moe_text",
    ),
    ({"layer_types": ["hybrid_sliding", "hybrid"]}, "inkling_text inkling2_text zaya"),
    ({"layer_types": ["conv", "full_attention"]}, "lfm2 lfm2_moe"),
    (  # Blocks that share their attention
        {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2, "num_key_value_heads": 4},
        "zamba zamba2",
    ),
    (  # Attention through low ranks has as many keys as queries
        {"num_key_value_heads": 4, "head_dim": 4},
        "axk1 axk2 bailing_hybrid deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa hy_v4 kimi_linear"
        " longcat_flash minicpm3 youtu",
    ),
    ({"indexer_types": ["full", "shared"]}, "glm_moe_dsa hy_v4"),
    (  # In transformers a prompt's steps have this for a lower bound, and a single step has none
        {"time_step_min": 1e-6},
        "nemotron_h zamba2",
    ),
    (  # Encoders that are decoders when told so
        {"is_decoder": True},
        "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert reformer rembert roberta"
        " roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl xmod",
    ),
    (  # A head tied to random embeddings likes to say the last word again
        {"tie_word_embeddings": False},
        "bigbird_pegasus biogpt ctrl electra gemma2 gemma3 gemma3_text gemma4 gemma4_text gemma4_unified gemma4_unified_text"
        " m2m_100 marian mvp nllb-moe pegasus_x roberta-prelayernorm roc_bert seamless_m4t seamless_m4t_v2 t5gemma t5gemma2",
    ),
)
OVERRIDES: dict[str, dict[str, Any]] = {
    # Attention
    "bigbird_pegasus": {"block_size": 2, "num_random_blocks": 1},
    "cohere_compass_text": {
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
            "full_attention": None,
        }
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v4": {
        "num_key_value_heads": 1,
        "num_hidden_layers": 3,
        "layer_types": ["heavily_compressed_attention", "compressed_sparse_attention", "sliding_attention"],
        "mlp_layer_types": ["hash_moe", "moe", "moe"],
        "compress_rates": {"heavily_compressed_attention": 8, "compressed_sparse_attention": 2},
    },
    "dots3_note_text": {
        "layer_types": ["indexed_attention", "sliding_attention"],
        "num_key_value_heads": 4,
        "head_dim": 12,
        "per_layer_config": {1: {"head_dim": 12, "qk_nope_head_dim": 8, "v_head_dim": 4, "kv_lora_rank": 8}},
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "llama4_text": {
        "layer_types": ["chunked_attention", "full_attention"],
        "no_rope_layers": [1, 0],
        "interleave_moe_layer_step": 2,
    },
    "minimax_m3_vl_text": {
        "layer_types": ["minimax_m3_sparse", "full_attention"],
        "index_n_heads": 2,
        "index_block_size": 4,
        "index_topk_blocks": 2,
    },
    "moshi": {"sliding_window": 128},  # outside the window its cache forgets, but its mask does not
    "reformer": {
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [8, 16],
        "axial_pos_embds_dim": [16, 16],
        "hash_seed": 0,
    },
    "smollm3": {"no_rope_layers": [1, 0]},
    # States
    "bamba": {"attn_layer_indices": [1]},
    "falcon_h1": {"mamba_d_ssm": 64},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm3": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "sliding_attention"]},
    "mamba2": {"head_dim": 16},
    "minimax": {"layer_types": ["full_attention", "linear_attention"]},  # the first layer's cache counts the tokens
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"],
        "ple_layer_ids": [1],
        "heads_per_ngram": 2,
        "ngram_vocab_size_base": 50,
        "make_ngram_vocab_size_divisible_by": 8,
        "split_ngram_parts": 2,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "xlstm": {"hidden_size": 128},  # its cache has sizes in 64s
    # Experts
    "nllb-moe": {"encoder_sparse_step": 2, "decoder_sparse_step": 2},
    "zaya": {"num_experts_per_tok": 1},
    # Words and positions
    "blt": {"num_hidden_layers": 2},  # that its cache asks for
    "encoder-decoder": {
        "encoder": {"is_decoder": False},
        "decoder": {"add_cross_attention": True, "num_hidden_layers": 1, "tie_word_embeddings": False},
    },
    "marian": {"scale_embedding": True},
    "prophetnet": {"pad_token_id": 0},  # its positions count from there
    "t5": {"decoder_start_token_id": 0},
    "xmod": {"default_language": "en_XX"},
    # Sight and hearing
    "got_ocr2": {"vision_config": {"image_size": 32}},
    "nemotron3_5_transcribe_asr_audio": {"num_key_value_heads": 4},
    "nemotron3_5_transcribe_word_timestamp": {"num_key_value_heads": 4, "blank_token_id": 299},
    "nemotron3_diarization_audio": {"num_key_value_heads": 4},
    "phi4_multimodal": {"vision_config": {"image_size": 28, "crop_size": 28}},
    "vibevoice_acoustic_tokenizer_encoder": {"depths": [1, 1], "downsampling_ratios": [2]},
}
EXCLUDED: dict[str, str] = {
    "gemma3n": "its class builds a vision tower of timm, which is not there",
    "gemma4_assistant": "drafts for another model, from whose states it begins",
    "gemma4_unified_assistant": "drafts for another model, from whose states it begins",
    "musicgen": "its tokens are codes of sound, and the auto class cannot build it from its configuration",
    "musicgen_melody": "its tokens are codes of sound, and the auto class cannot build it from its configuration",
    "dory": "transformers 5.24 itself cannot generate with a small model of it",
    "omniasr": "what it reads is sound",
    "sarvam_mla": "transformers 5.24 itself cannot generate with a small model of it",
    "voxtral_realtime": "asks for a piece of sound with each token",
}
# Where the first weights drawn give dull answers
SEEDS = {
    "bart": 18,
    "blenderbot-small": 21,
    "camembert": 3,
    "data2vec-text": 3,
    "encoder-decoder": 1,
    "fsmt": 12,
    "hunyuan_v1_moe": 1,
    "led": 18,
    "longt5": 9,
    "marian": 2,
    "mpt": 4,
    "mt5": 3,
    "mvp": 2,
    "olmo3": 1,
    "pegasus_x": 2,
    "plbart": 23,
    "prophetnet": 11,
    "reformer": 1,
    "rembert": 1,
    "roberta": 3,
    "roc_bert": 1,
    "switch_transformers": 2,
    "t5": 8,
    "umt5": 2,
    "xglm": 7,
    "xlm-roberta": 3,
    "xmod": 8,
    "zaya": 3,
}


def causal_types() -> list[str]:
    return [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in EXCLUDED]


def seq2seq_types() -> list[str]:
    """Those of encoders and decoders, and those of a decoder that can listen to a sound before its prompt."""
    return [name for name in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES if name not in EXCLUDED]


def save_random_model(folder: Path, model_type: str, seq2seq: bool = False, **options: Any) -> Path:
    """To be loaded by the auto class of causal models or, with `seq2seq`, by that of encoders and decoders."""
    torch.manual_seed(SEEDS.get(model_type, 0))
    auto_class = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    config = random_config(model_type, **options)
    model = auto_class.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * (MATRIX_NOISE if parameter.ndim > 1 else VECTOR_NOISE)
    model.save_pretrained(folder)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)  # of all parts, as published, where the model has kept that of the text alone
    save_byte_tokenizer(folder)
    return folder


def random_config(model_type: str, **options: Any) -> PreTrainedConfig:
    config_class = CONFIG_MAPPING[model_type]
    return config_class(**small_values(config_class, overrides(model_type) | options))


def small_values(config_class: type[PreTrainedConfig], own: dict[str, Any]) -> dict[str, Any]:
    """The common values that this class of configurations knows, then its own, and the same for each of its parts."""
    known = {field.name for field in dataclasses.fields(config_class)}
    values = {name: value for name, value in COMMON.items() if name in known} | own
    for name, part_class, model_type, fixed in _parts(config_class):
        given = values.get(name, None if model_type is None else {})
        if given is not None:
            own_type = given.get("model_type", model_type)
            own_class = part_class if issubclass(part_class, PreTrainedConfig) else CONFIG_MAPPING[own_type]
            values[name] = fixed | small_values(own_class, overrides(own_type) | given) | {"model_type": own_type}
    return values


def _parts(config_class: type[PreTrainedConfig]) -> list[tuple[str, type, str | None, dict[str, Any]]]:
    """Name, class, type and what is fixed of each part; no type of those that need not be there. transformers 5.17 does not say
    which type a part has by itself, where it may have several."""
    if hasattr(config_class, "sub_configs_defaults"):
        parts = config_class.sub_configs_defaults.items()
        return [(name, part.config_class, None if part.optional else part.model_type, part.init_kwargs) for name, part in parts]
    return [(name, part, getattr(part, "model_type", None) or None, {}) for name, part in config_class.sub_configs.items()]


def overrides(model_type: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for family, members in FAMILIES:
        if model_type in members.split():
            values |= family
    return values | OVERRIDES.get(model_type, {})

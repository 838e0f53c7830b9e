"""The registry: which model types are served, and through which of our ways. Adding a type is one line here.

In: what a config.json says. Out: a way, or why there is none. Only names: the classes are imported when they are needed.
"""

import enum
from collections.abc import Mapping
from typing import Any

from text_generation_server.errors import ModelError
from text_generation_server.models import llama_config


class Way(enum.Enum):
    """How a model is served; the value names the module that does it, and the class in it."""

    BLOOM = ("bloom", "Bloom")  # written for this server, as the next one
    LLAMA = ("llama", "Llama")
    ADAPTER = ("transformers_decoder", "TransformersDecoder")  # transformers' modules with our attention in them
    FALLBACK = ("fallback", "Fallback")  # a model's own code over our cache
    RECOMPUTE = ("recompute", "Recompute")  # its own code without a cache
    SEQ2SEQ = ("seq2seq", "Seq2seq")  # an encoder and a decoder
    OWN_CODE = ("own_code", "OwnCode")  # Python files of the model's folder

    @property
    def is_native(self) -> bool:
        return self in NATIVE.values()


NATIVE = {"bloom": Way.BLOOM, "llama": Way.LLAMA, "mistral": Way.LLAMA, "qwen2": Way.LLAMA}
# Served through transformers' own modules with our attention in them. All are compared with transformers in tests/sweep.
ADAPTED = (
    *("afmoe", "apertus", "arcee", "aria_text", "axk1", "beam", "bert", "bert-generation", "biogpt", "bitnet"),
    *("camembert", "cohere", "cohere2", "cohere2_moe", "cohere_compass_text", "ctrl", "cwm", "data2vec-text", "dbrx"),
    *("deepseek_v2", "deepseek_v3", "dots1", "electra", "emu3", "ernie", "ernie4_5", "ernie4_5_moe", "exaone4"),
    *("exaone_moe", "flex_olmo", "flint", "fuyu", "gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n_text"),
    *("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text", "glm", "glm4", "glm4_moe", "glm4_moe_lite"),
    *("got_ocr2", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_oss", "granite", "granite_swa", "granitemoe"),
    *("granitemoe_swa", "granitemoeshared", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "hyperclovax"),
    *("internlm3", "iquestcoder", "jais2", "jetmoe", "kolibri1", "laguna", "llama", "llama4", "llama4_text"),
    *("longcat_flash", "mellum", "mimo_v2_flash", "minicpm3", "minimax_m2", "ministral", "ministral3", "mistral"),
    *("mixtral", "mllama", "modernbert-decoder", "moshi", "nanochat", "olmo", "olmo2"),
    *("olmo3", "olmoe", "opt", "persimmon", "phi", "phi3", "phi4_multimodal", "qwen2", "qwen2_moe", "qwen3"),
    *("qwen3_moe", "roberta", "roberta-prelayernorm", "roc_bert", "seed_oss", "smollm3", "solar_open", "starcoder2"),
    *("vaultgemma", "xlm-roberta", "xlm-roberta-xl", "xmod", "youtu"),
)
# All others run in their own code with caches of ours (`Fallback`), each compared as well. These do without caches,
RECOMPUTED = ("blt", "cpmant", "deepseek_v4", "minimax", "openai-gpt", "recurrent_gemma")
# and these are not served, for the reason given.
LISTENERS = (
    *("audioflamingo3", "glmasr", "granite_speech", "granite_speech_plus", "moss_transcribe_diarize", "musicflamingo"),
    *("nemo_speechlm", "qwen2_audio", "qwen3_asr", "vibevoice_asr", "voxtral", "voxtral_realtime", "whisper"),
)
REFUSED = {name: "it listens to a recording, and requests have none" for name in LISTENERS} | {
    "fsmt": "its two languages have a vocabulary each, and a tokenizer.json has one",
    "gemma4_assistant": "it drafts tokens for another model, from that model's states",
    "gemma4_unified_assistant": "it drafts tokens for another model, from that model's states",
    "musicgen": "it answers in sounds",
    "musicgen_melody": "it answers in sounds",
    "prophetnet": "it predicts several tokens at once, for which there is no place here",
    "seamless_m4t": "the language that it answers in is named with each call, and requests name none",
    "seamless_m4t_v2": "the language that it answers in is named with each call, and requests name none",
    "reformer": "what it attends to is drawn by lot, anew in each forward",
    "xlm": "it fills in a masked token, and does not predict from left to right",
    "xlnet": "it fills in a masked token, and does not predict from left to right",
}
# Served through their own encoders and decoders (`Seq2seq`), unless their configuration is that of the decoder alone.
SEQ2SEQ = (
    *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "encoder-decoder", "led", "longt5", "m2m_100", "marian"),
    *("mbart", "mt5", "mvp", "nllb-moe", "pegasus", "pegasus_x", "plbart", "switch_transformers", "t5", "t5gemma"),
    *("t5gemma2", "umt5"),
)
ENCODERS = (  # which are decoders when their configuration says so
    *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "reformer"),
    *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod"),
)


def find_way(config: Mapping[str, Any], trust_remote_code: bool = False) -> Way:
    """
    Raises:
        ModelError: there is none, with the reason.
    """
    model_type = config.get("model_type", "")
    if trust_remote_code and "auto_map" in config:
        _refuse_code_from_elsewhere(config["auto_map"])
        return Way.OWN_CODE
    if _is_seq2seq(config):
        return Way.SEQ2SEQ
    _check_decoder(model_type, config)
    if (way := NATIVE.get(model_type)) and _is_plain(model_type, config):
        return way
    if model_type in ADAPTED:
        return Way.ADAPTER
    return Way.RECOMPUTE if model_type in RECOMPUTED else Way.FALLBACK


def _is_plain(model_type: str, config: Mapping[str, Any]) -> bool:
    """Whether our own code does all that the configuration asks for. Another library's quantization is its own to read."""
    return config.get("quantization_config") is None and (model_type == "bloom" or llama_config.is_plain(config))


def _refuse_code_from_elsewhere(auto_map: Mapping[str, Any]) -> None:
    """
    Raises:
        ModelError: code would be fetched from a repository, at whatever state, that nobody has said to trust.
    """
    if elsewhere := [str(place) for place in auto_map.values() if "--" in str(place)]:
        raise ModelError(f"auto_map in config.json wants code of another repository, {elsewhere[0]}: put it into the folder")


def _is_seq2seq(config: Mapping[str, Any]) -> bool:
    """Some types are decoders too: their folders name the class, or say that there is no encoder."""
    is_decoder = any(str(name).endswith("ForCausalLM") for name in config.get("architectures") or ())
    return config.get("model_type") in SEQ2SEQ and config.get("is_encoder_decoder", True) and not is_decoder


def _check_decoder(model_type: str, config: Mapping[str, Any]) -> None:
    """
    Raises:
        ModelError: transformers has no decoder of this type, or answers of it would be wrong.
    """
    if model_type in ENCODERS and not config.get("is_decoder"):
        raise ModelError(f"it is an encoder: config.json of a {model_type!r} that generates text says is_decoder")
    if model_type in (*NATIVE, *ADAPTED):
        return
    if model_type in REFUSED:
        raise ModelError(f"model type {model_type!r} is not served: {REFUSED[model_type]}")
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        known = dict.fromkeys([*NATIVE, *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *SEQ2SEQ])
        served = ", ".join(name for name in known if name not in REFUSED)
        if "auto_map" in config:
            advice = "read it, and pass --trust-remote-code to run it"
            raise ModelError(f"it brings code of its own for {model_type!r}: {advice}")
        raise ModelError(f"model type {model_type!r} is not served; served are: {served}")

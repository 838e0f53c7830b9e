"""A random Llama as a GGUF file, with a byte-level tokenizer and a chat template, written as llama.cpp's converter does."""

from pathlib import Path

import gguf
import numpy as np
from tokenizers import pre_tokenizers

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KEY_VALUE_HEADS, HEAD_DIM = 64, 96, 2, 4, 2, 16
SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<pad>"]
TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}{% endfor %}"


def save_gguf(file: Path, kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q8_0, seed: int = 0) -> Path:
    """Matrices are stored as `kind`, norms in float32, and the head is the embedding."""
    writer = gguf.GGUFWriter(file, "llama")
    _write_sizes(writer)
    vocab_size = _write_tokenizer(writer)
    chance = np.random.default_rng(seed)
    for name, shape in _shapes(vocab_size).items():
        if name.endswith("norm.weight"):
            writer.add_tensor(name, np.ones(shape, np.float32))
        else:
            values = chance.normal(0, 0.3, shape).astype(np.float32)
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _write_sizes(writer: gguf.GGUFWriter) -> None:
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)


def _write_tokenizer(writer: gguf.GGUFWriter) -> int:
    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "ll"]
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in SPECIAL_TOKENS else normal for token in tokens])
    writer.add_token_merges(["h e", "l l"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(3)
    writer.add_chat_template(TEMPLATE)
    return len(tokens)


def _shapes(vocab_size: int) -> dict[str, tuple[int, ...]]:
    layer = {
        "attn_norm": (HIDDEN,),
        "attn_q": (HEADS * HEAD_DIM, HIDDEN),
        "attn_k": (KEY_VALUE_HEADS * HEAD_DIM, HIDDEN),
        "attn_v": (KEY_VALUE_HEADS * HEAD_DIM, HIDDEN),
        "attn_output": (HIDDEN, HEADS * HEAD_DIM),
        "ffn_norm": (HIDDEN,),
        "ffn_gate": (INTERMEDIATE, HIDDEN),
        "ffn_up": (INTERMEDIATE, HIDDEN),
        "ffn_down": (HIDDEN, INTERMEDIATE),
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab_size, HIDDEN), "output_norm.weight": (HIDDEN,)}
    return shapes | {f"blk.{index}.{name}.weight": shape for index in range(LAYERS) for name, shape in layer.items()}

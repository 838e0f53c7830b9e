"""Small random BLOOMs with a tokenizer, saved as transformers saves them, for tests that need a model and no sense."""

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BloomConfig, BloomForCausalLM

SPECIAL_TOKENS = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3}


def save_random_bloom(
    folder: Path,
    num_heads: int = 8,
    num_layers: int = 3,
    head_dim: int = 8,
    vocab_size: int = 300,
    seed: int = 0,
    initializer_range: float = 0.3,
) -> Path:
    """Weights drawn wide enough that greedy answers are not one repeated token."""
    torch.manual_seed(seed)
    config = BloomConfig(
        vocab_size=vocab_size,
        hidden_size=num_heads * head_dim,
        n_layer=num_layers,
        n_head=num_heads,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        initializer_range=initializer_range,
    )
    BloomForCausalLM(config).save_pretrained(folder)
    save_byte_tokenizer(folder)
    return folder


def save_byte_tokenizer(folder: Path) -> None:
    """One token a byte, in the byte-level alphabet, behind BLOOM's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = SPECIAL_TOKENS | {character: 4 + index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))


def random_text(num_characters: int, generator: torch.Generator) -> str:
    letters = string.ascii_letters + "     .,\n"
    return "".join(letters[i] for i in torch.randint(len(letters), (num_characters,), generator=generator).tolist())

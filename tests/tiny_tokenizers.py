"""Two small tokenizers, trained in a blink: byte-level as BLOOM's, and metaspace with byte fallback as Llama 2's.

In: nothing. Out: `tokenizers.Tokenizer`s, and folders that hold one as models do.
"""

import json
import pathlib

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<pad>"]
_TEXT = ["To be, or not to be: that is the question. Señor, naïve café, 日本語 日本, 🙂🙂 ROMEO: what say you?"] * 20


def byte_level() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    _train(tokenizer, 340, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=SPECIAL_TOKENS)
    return tokenizer


def metaspace() -> tokenizers.Tokenizer:
    """Puts `<s>` before every text, and drops a text's first space when decoding."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    _train(tokenizer, 400, special_tokens=SPECIAL_TOKENS + byte_tokens)
    # The trainer knows no other way to make sure of byte tokens; published tokenizers do not have them as special ones.
    written = json.loads(tokenizer.to_str())
    written["added_tokens"] = [token for token in written["added_tokens"] if token["content"] in SPECIAL_TOKENS]
    return tokenizers.Tokenizer.from_str(json.dumps(written))


def save(tokenizer: tokenizers.Tokenizer, folder: pathlib.Path) -> str:
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


def _train(tokenizer: tokenizers.Tokenizer, vocab_size: int, **options: list[str]) -> None:
    tokenizer.train_from_iterator(_TEXT, trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, **options))

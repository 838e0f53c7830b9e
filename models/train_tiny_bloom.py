"""Train the tiny BLOOM that the examples and the tests serve.

In: a plain text in UTF-8 (`--text`), whose last tenth is held out to choose the best checkpoint. Out: a folder in the
layout of the published BLOOM checkpoints (config.json, float16 model.safetensors, tokenizer.json and
tokenizer_config.json) and, on standard output, progress lines, the held-out loss of the files and a greedy sample.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, BloomConfig, BloomForCausalLM

# A conversation as a play has it: each speaker's name, then the words.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ (message.name or message.role) | upper }}:\n{{ message.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:\n{% endif %}"
)
SPECIAL_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
# initializer_range is above the published 0.02: at this width the smaller value wastes the first steps.
CONFIG: dict[str, Any] = {
    "apply_residual_connection_post_layernorm": False,
    "architectures": ["BloomForCausalLM"],
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_dropout": 0.0,
    "initializer_range": 0.05,
    "layer_norm_epsilon": 1e-05,
    "masked_softmax_fusion": True,
    "model_type": "bloom",
    "n_embed": 256,
    "n_inner": None,
    "n_layer": 5,
    "num_attention_heads": 8,
    "offset_alibi": 100,
    "pad_token_id": 3,
    "pretraining_tp": 1,
    "seq_length": 2048,
    "skip_bias_add": True,
    "skip_bias_add_qkv": False,
    "torch_dtype": "float16",
    "unk_token_id": 0,
    "use_cache": True,
    "vocab_size": 2048,
}
CONTEXTS = (256, 256, 256, 512)  # tokens; every fourth step is longer, so that ALiBi sees far distances too
TOKENS_PER_STEP = 1024
HELD_OUT_CONTEXT = 512
WARMUP = 0.06  # share of the run
SAMPLE_PROMPT = "ROMEO:"
SAMPLE_TOKENS = 100


def train_tokenizer(text: str) -> Tokenizer:
    """Return a byte-level BPE of `text`: the special tokens are 0-3 and every byte has a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def new_model(dropout: float) -> BloomForCausalLM:
    """Return an untrained model in training mode, with `dropout` on each layer's two outputs."""
    # Attention dropout is left out: on a CPU its random masks cost as much time as the matrix products.
    model = BloomForCausalLM(BloomConfig(**{**CONFIG, "hidden_dropout": dropout}))
    for block in model.transformer.h:
        block.mlp.gelu_impl = torch.nn.GELU("tanh")  # the same function, in one pass over memory
    return model.train()


def random_batches(ids: torch.Tensor, seed: int) -> Iterator[torch.Tensor]:
    """Yield random windows of `ids` (tokens,) without end, each batch of shape (TOKENS_PER_STEP / context, context)."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for context in CONTEXTS:
            starts = torch.randint(len(ids) - context, (TOKENS_PER_STEP // context, 1), generator=generator)
            yield ids[starts + torch.arange(context)]


@torch.inference_mode()
def held_out_loss(model: BloomForCausalLM, ids: torch.Tensor) -> float:
    """Return the mean loss in nats per token over `ids` (tokens,), read in windows of HELD_OUT_CONTEXT."""
    model.eval()
    total = 0.0
    for start in range(0, len(ids) - 1, HELD_OUT_CONTEXT):
        # One token more than the stride: the first token of a window has no prediction of its own.
        window = ids[None, start : start + HELD_OUT_CONTEXT + 1]
        total += model(window, labels=window, use_cache=False).loss.item() * (window.shape[1] - 1)
    model.train()
    return total / (len(ids) - 1)


def learning_rate(progress: float, peak: float) -> float:
    """Return the rate at `progress` (0 to 1 of the run): a linear warm-up to `peak`, then a cosine down to zero."""
    if progress < WARMUP:
        return peak * progress / WARMUP
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - WARMUP) / (1 - WARMUP))))


def train_step(model: BloomForCausalLM, optimizer: torch.optim.AdamW, batch: torch.Tensor, rate: float) -> float:
    """Take one step on `batch` (rows, context) at learning rate `rate`; return the loss in nats per token."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = model(batch, labels=batch, use_cache=False).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def train(model: BloomForCausalLM, ids: torch.Tensor, held_out: torch.Tensor, args: argparse.Namespace) -> None:
    """Train `model` in place on `ids` (tokens,) and leave it at its best checkpoint on `held_out` (tokens,)."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.1, fused=True)
    best_loss, best_state, stale = math.inf, model.state_dict(), 0
    losses: list[float] = []
    started = time.monotonic()
    for step, batch in enumerate(random_batches(ids, args.seed), start=1):
        # The schedule follows the nearer limit, so that a slow machine still ends at a low rate.
        progress = max(step / args.steps, (time.monotonic() - started) / (60 * args.minutes))
        losses.append(train_step(model, optimizer, batch, learning_rate(progress, args.learning_rate)))
        if step % args.eval_every and progress < 1:
            continue
        loss = held_out_loss(model, held_out)
        seconds = time.monotonic() - started
        print(
            f"step {step:5d}  train {sum(losses) / len(losses):.4f}  held-out {loss:.4f}  "
            f"{step * TOKENS_PER_STEP / seconds:.0f} tokens/s  {seconds / 60:.1f} min",
            flush=True,
        )
        losses.clear()
        stale += 1
        if loss < best_loss:
            best_loss, stale = loss, 0
            best_state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if stale >= args.patience or progress >= 1:
            break
    model.load_state_dict(best_state)


def save(model: BloomForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write `model` and `tokenizer` to `folder`, named as the published BLOOM checkpoints name them."""
    folder.mkdir(parents=True, exist_ok=True)
    # Published checkpoints hold the bare transformer: no prefix, and no head, since it is tied to the embeddings.
    tensors = {
        name.removeprefix("transformer."): tensor.half().contiguous()
        for name, tensor in model.state_dict().items()
        if name.startswith("transformer.")
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        **SPECIAL_TOKENS,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "tokenizer_class": "BloomTokenizerFast",
    }
    for name, content in (("config.json", CONFIG), ("tokenizer_config.json", tokenizer_config)):
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def report(folder: Path, held_out: torch.Tensor) -> None:
    """Load `folder` as a user would; print its loss on `held_out` (tokens,) and a greedy sample."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    loss = held_out_loss(model, held_out)
    print(f"saved files: held-out loss {loss:.4f} nats per token, perplexity {math.exp(loss):.1f}")
    model.eval()
    prompt = tokenizer(SAMPLE_PROMPT, return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=SAMPLE_TOKENS, do_sample=False)
    print(tokenizer.decode(output[0]))


def parse_args() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(
        description="Train a tiny BLOOM on a plain text and save it like a published checkpoint.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="UTF-8 text; its end is held out")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "tiny-bloom", help="folder to write")
    parser.add_argument("--steps", type=int, default=2600, help=f"most steps, of {TOKENS_PER_STEP} tokens each")
    parser.add_argument("--minutes", type=float, default=22.0, help="most minutes of training, evaluations included")
    parser.add_argument("--eval-every", type=int, default=300, help="steps between two held-out losses")
    parser.add_argument("--patience", type=int, default=3, help="held-out losses without a gain before stopping")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--dropout", type=float, default=0.1, help="dropout of each layer's outputs while training")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--seed", type=int, default=1, help="seed of the weights, the batches and the dropout")
    return parser.parse_args()


def main() -> None:
    """Train the tokenizer and the model, save both and report on the saved files."""
    args = parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    text = args.text.read_text(encoding="utf-8")
    cut = len(text) * 9 // 10
    tokenizer = train_tokenizer(text[:cut])
    ids, held_out = (torch.tensor(tokenizer.encode(part).ids) for part in (text[:cut], text[cut:]))
    model = new_model(args.dropout)
    print(f"{model.num_parameters():,} parameters, {len(ids):,} training and {len(held_out):,} held-out tokens")
    train(model, ids, held_out, args)
    save(model, tokenizer, args.output)
    report(args.output, held_out)


if __name__ == "__main__":
    main()

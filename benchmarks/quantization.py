"""What 8 and 4 bits cost in quality and speed, and what memory they save, beside float32 (bfloat16 on CUDA).

In: a small trained model for the perplexity, a larger one for memory and time. Out: two Markdown tables.
"""

import argparse
import dataclasses
import gc
import logging
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from decode_loop import WARM_UP_STEPS, DecodeLoop
from generated_model import add_cache_argument, model_folder
from hardware import heading
from perplexity import WINDOW_TOKENS, perplexity, sample_windows, windows_of
from shard_process import BareProcess, Memory, ShardProcess
from table import markdown, median
from tokenizers import Tokenizer

from text_generation_server.config import QUANTIZE_KINDS, ShardConfig
from text_generation_server.runner import Runner, load_runner

KINDS = (None, *(kind for kind in QUANTIZE_KINDS if kind != "int8-dynamic" or not torch.cuda.is_available()))
BATCH_SIZES = (1, 16)
CONTEXT_TOKENS = 128
PERPLEXITY_KV_GIB = 0.5
SPEED_KV_GIB = 1.0
MEMORY_KV_GIB = 0.1  # the same for every kind; as little as also the largest shape can do with, so that the weights show
FIRST_TEXT = "\n"  # what the model's own texts begin after


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """Of one kind of storage, on the larger model."""

    weight_bytes: int
    memory: Memory
    step_seconds: dict[int, float]  # by batch size


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare the --quantize kinds with unquantized weights: perplexity on a text (lower is better), memory of "
        "a shard process after loading, and the time of a decode step. Prints two Markdown tables."
    )
    parser.add_argument(
        "--model",
        default="embedded",
        metavar="MODEL",
        help="whose perplexity to measure: embedded (the model in this repository) or a folder; default: embedded",
    )
    parser.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="UTF-8 text to measure it on; default: texts that the unquantized model itself draws, with fixed seeds",
    )
    parser.add_argument(
        "--tail",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="only the last part of the text: 0.1 is what models/train_tiny_bloom.py holds out; default: 1, all of it",
    )
    parser.add_argument(
        "--max-tokens", type=int, default=32768, metavar="N", help="most tokens of text that are used; default: 32768"
    )
    parser.add_argument(
        "--large-model",
        default="560m",
        metavar="MODEL",
        help="whose memory and step time to measure: 560m, 7b1, 176b-eighth (generated weights), embedded, or a folder; "
        "default: 560m",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on CUDA, else float32")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="steps that each median is of; default: 20")
    parser.add_argument("--quick", action="store_true", help="the embedded model for everything, short: does it run at all?")
    add_cache_argument(parser)
    arguments = parser.parse_args(argv)
    if arguments.text and not arguments.text.is_file():
        parser.error(f"there is no file {arguments.text}")
    arguments.dtype = arguments.dtype or ("bfloat16" if torch.cuda.is_available() else "float32")
    if arguments.quick:
        arguments.large_model, arguments.max_tokens, arguments.steps = "embedded", 2 * WINDOW_TOKENS, 3
    return arguments


def measure_perplexities(arguments: argparse.Namespace) -> dict[str, float]:
    """By what stores the weights; bfloat16 is what most checkpoints come in."""
    folder = model_folder(arguments.model, arguments.cache)
    windows = _text_windows(folder, arguments) if arguments.text else _own_windows(folder, arguments)
    dtypes = dict.fromkeys((arguments.dtype, "bfloat16"))
    plain = {f"none ({dtype})": _perplexity(folder, None, dtype, windows) for dtype in dtypes}
    return plain | {kind: _perplexity(folder, kind, arguments.dtype, windows) for kind in KINDS if kind}


def measure_costs(arguments: argparse.Namespace) -> dict[str | None, Cost]:
    folder = model_folder(arguments.large_model, arguments.cache)
    return {kind: _cost(folder, kind, arguments) for kind in KINDS}


def _text_windows(folder: Path, arguments: argparse.Namespace) -> list[Sequence[int]]:
    text = arguments.text.read_text(encoding="utf-8")
    token_ids = _tokenizer(folder).encode(text[int(len(text) * (1 - arguments.tail)) :]).ids
    return windows_of(token_ids[: arguments.max_tokens])


def _own_windows(folder: Path, arguments: argparse.Namespace) -> list[list[int]]:
    runner = _load(folder, None, arguments.dtype, PERPLEXITY_KV_GIB)
    first_token_id = _tokenizer(folder).encode(FIRST_TEXT).ids[0]
    return sample_windows(runner, max(1, arguments.max_tokens // WINDOW_TOKENS), WINDOW_TOKENS, first_token_id)


def _perplexity(folder: Path, kind: str | None, dtype: str, windows: Sequence[Sequence[int]]) -> float:
    return perplexity(_load(folder, kind, dtype, PERPLEXITY_KV_GIB), windows)


def _cost(folder: Path, kind: str | None, arguments: argparse.Namespace) -> Cost:
    memory = _shard_memory(folder, kind, arguments.dtype)
    runner = _load(folder, kind, arguments.dtype, SPEED_KV_GIB)
    steps = {size: _step_seconds(runner, size, arguments.steps) for size in BATCH_SIZES}
    return Cost(runner.model.weight_bytes, memory, steps)


def _shard_memory(folder: Path, kind: str | None, dtype: str) -> Memory:
    quantize = ["--quantize", kind] if kind else []
    with ShardProcess(folder, ["--dtype", dtype, "--kv-cache-gib", str(MEMORY_KV_GIB), *quantize]) as shard:
        return shard.memory()


def _bare_memory(*more_modules: str) -> Memory:
    with BareProcess("text_generation_server.service", *more_modules) as process:
        return process.memory()


def _step_seconds(runner: Runner, batch_size: int, num_steps: int) -> float:
    chance = random.Random(0)
    vocab_size = runner.model.config.vocab_size
    prompts = [[chance.randrange(4, vocab_size) for _ in range(CONTEXT_TOKENS)] for _ in range(batch_size)]
    return median(DecodeLoop(runner, prompts, 1 + WARM_UP_STEPS + num_steps).time_steps(num_steps))


def _load(folder: Path, kind: str | None, dtype: str, kv_cache_gib: float) -> Runner:
    gc.collect()
    config = ShardConfig(
        model_id=str(folder), quantize=kind, dtype=dtype, kv_cache_gib=kv_cache_gib, max_batch_tokens=WINDOW_TOKENS
    )
    return load_runner(config, folder)


def _tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def perplexity_table(perplexities: dict[str, float]) -> str:
    plain = next(iter(perplexities.values()))
    rows = [[kind, f"{value:.3f}", f"{value / plain - 1:+.2%}"] for kind, value in perplexities.items()]
    return markdown(("--quantize", "perplexity", "beside the first"), rows)


def cost_table(costs: dict[str | None, Cost], bare: dict[str, Memory], dtype: str) -> str:
    rows = [[f"(no model, {what})", "", *_memory_cells(memory), "", ""] for what, memory in bare.items()]
    for kind, cost in costs.items():
        steps = [f"{cost.step_seconds[size] * 1e3:.1f} ms" for size in BATCH_SIZES]
        rows.append([kind or f"none ({dtype})", f"{cost.weight_bytes / 1e6:.0f} MB", *_memory_cells(cost.memory), *steps])
    steps = [f"step at batch {size}" for size in BATCH_SIZES]
    return markdown(("--quantize", "matrices", "resident", "of it file-backed", "unique", *steps), rows)


def _memory_cells(memory: Memory) -> list[str]:
    sizes = (memory.resident_bytes, memory.file_bytes, memory.unique_bytes)
    return [f"{size / 1e6:.0f} MB" for size in sizes]


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])
    logging.basicConfig(level=logging.WARNING)
    perplexities = measure_perplexities(arguments)
    costs = measure_costs(arguments)
    bare = {"imports only": _bare_memory(), "bitsandbytes imported": _bare_memory("bitsandbytes")}
    source = f"{arguments.text.name}, its last {arguments.tail:.0%}" if arguments.text else "texts drawn by the model itself"
    print(f"{heading()}\n")
    print(f"{arguments.model}, perplexity on {source}:\n")
    print(perplexity_table(perplexities))
    print(f"\n{arguments.large_model}, a loaded shard ({MEMORY_KV_GIB} GiB of KV cache) and its decode steps:\n")
    print(cost_table(costs, bare, arguments.dtype))


if __name__ == "__main__":
    main()

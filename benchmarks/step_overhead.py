"""What a shard does beside a decode step's forward, by the number of sequences: before it, the message is read and the batch
laid out; after it, tokens are chosen and the answer is written. A GPU has nothing to do in the meantime.

In: models and batch sizes. Out: one Markdown table. The embedded model says it best: its vocabulary is small.
"""

import argparse
import logging
import sys

from decode import prompts
from decode_loop import WARM_UP_STEPS, DecodeLoop
from generated_model import add_cache_argument, model_folder
from hardware import heading
from table import markdown, median

from text_generation_server.config import ShardConfig
from text_generation_server.runner import load_runner

CONTEXT_TOKENS = 64
NUM_STEPS = 40


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Decode batches of several sizes through the shard server's code in this process, and print what a step "
        "takes before and after the model's forward."
    )
    parser.add_argument("--models", nargs="+", default=["embedded"], metavar="MODEL", help="default: embedded")
    parser.add_argument(
        "--batch-sizes", nargs="+", type=int, default=[1, 16, 64, 256], metavar="N", help="default: 1 16 64 256"
    )
    add_cache_argument(parser)
    return parser.parse_args(argv)


def measure(model: str, arguments: argparse.Namespace) -> list[list[str]]:
    folder = model_folder(model, arguments.cache)
    runner = load_runner(ShardConfig(model_id=str(folder), kv_cache_gib=1.0), folder)
    rows = []
    for size in arguments.batch_sizes:
        loop = DecodeLoop(runner, prompts(size, CONTEXT_TOKENS, runner.model.config.vocab_size), 1 + WARM_UP_STEPS + NUM_STEPS)
        before, after = _time(loop)
        each = f"{(before + after) / size:.1f} µs"
        rows.append([folder.name, str(size), f"{before:.0f} µs", f"{after:.0f} µs", each])
    return rows


def _time(loop: DecodeLoop) -> tuple[float, float]:
    """Medians in microseconds: before the forward, and after it."""
    loop.time_steps(0)
    before, after = [], []
    for _ in range(NUM_STEPS):
        step_micros = loop.runner.timings.step_micros
        loop.step()
        step_micros = loop.runner.timings.step_micros - step_micros
        before.append(step_micros - loop.result.forward_micros - loop.result.sample_micros)
        after.append(loop.result.sample_micros)
    return median(before), median(after)


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])
    logging.basicConfig(level=logging.WARNING)
    rows = [row for model in arguments.models for row in measure(model, arguments)]
    print(heading() + "\n")
    print(markdown(["model", "sequences", "before the forward", "after it", "for each sequence"], rows))


if __name__ == "__main__":
    main()

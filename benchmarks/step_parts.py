"""Where the time of a decode step on a CPU goes: our kernels' products, attention and rotary positions, the choice of tokens,
and all else.

In: models and batch sizes. Out: one Markdown table. Each kernel's calls are timed from outside, which costs a microsecond each.
"""

import argparse
import itertools
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from decode import prompts
from decode_loop import WARM_UP_STEPS, DecodeLoop
from generated_model import add_cache_argument, model_folder
from hardware import heading
from table import markdown, median

from text_generation_server import cpu_kernels
from text_generation_server.config import QUANTIZE_KINDS, ShardConfig
from text_generation_server.runner import load_runner

CONTEXT_TOKENS = 128
NUM_STEPS = 40
PARTS = {
    "matrices, norms, activations": ("multiply", "multiply_in_turn"),
    "attention, keys and values written": ("attend",),
    "rotary positions": ("rotate",),
    "logits to tokens": ("greedy",),
}
REST = "all else"


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Time decode steps of the shard server in this process and print, for each part of a step, its share."
    )
    parser.add_argument("--models", nargs="+", default=["embedded", "560m"], metavar="MODEL", help="default: embedded 560m")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 16], metavar="N", help="default: 1 16")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: what the server would take")
    parser.add_argument("--quantize", choices=QUANTIZE_KINDS, metavar="KIND", help="default: none")
    add_cache_argument(parser)
    return parser.parse_args(argv)


class Clock:
    """Seconds by the name of the function that took them."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def watch(self, owner: Any, name: str) -> None:
        """From now on, those who look for `owner`'s function find one that is timed."""
        setattr(owner, name, self._timed(name, getattr(owner, name)))

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start_seconds = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds[name] += time.perf_counter() - start_seconds

        return call


def measure(model: str, arguments: argparse.Namespace, clock: Clock) -> list[list[str]]:
    folder = model_folder(model, arguments.cache)
    config = ShardConfig(model_id=str(folder), dtype=arguments.dtype, quantize=arguments.quantize, kv_cache_gib=1.0)
    runner = load_runner(config, folder)
    clock.watch(runner.sampler, "greedy")
    rows = []
    for size in arguments.batch_sizes:
        batch = prompts(size, CONTEXT_TOKENS, runner.model.config.vocab_size)
        loop = DecodeLoop(runner, batch, 1 + 2 * WARM_UP_STEPS + NUM_STEPS)
        loop.time_steps(0)
        clock.seconds.clear()
        steps = loop.time_steps(NUM_STEPS)
        per_step = (sum(clock.seconds[name] for name in names) / (NUM_STEPS + WARM_UP_STEPS) for names in PARTS.values())
        shares = [seconds * NUM_STEPS / sum(steps) for seconds in per_step]
        cells = [f"{share:.0%}" for share in (*shares, 1 - sum(shares))]
        storage = arguments.quantize or str(runner.dtype).removeprefix("torch.")
        rows.append([folder.name, storage, str(size), f"{median(steps) * 1e3:.1f} ms", *cells])
    return rows


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])
    logging.basicConfig(level=logging.WARNING)
    library = cpu_kernels.library()
    if library is None:
        sys.exit("our CPU kernels do not run here")
    clock = Clock()
    for name in itertools.chain.from_iterable(PARTS.values()):
        if hasattr(library, name):
            clock.watch(library, name)
    rows = [row for model in arguments.models for row in measure(model, arguments, clock)]
    print(f"{heading()}\n\nContext {CONTEXT_TOKENS} tokens; a step (median of {NUM_STEPS}) and where its time goes.\n")
    print(markdown(("model", "weights", "batch", "step", *PARTS, REST), rows))


if __name__ == "__main__":
    main()

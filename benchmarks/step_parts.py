"""Where the time of a decode step goes: matrices, attention, norms, sampling, other operations, and between them.

In: models and batch sizes. Out: one Markdown table. Operations are timed by PyTorch's profiler and put under the part of the
step that called them; what is no operation's is Python's, or the interpreter's of recorded layers. The profiler makes every
call dearer: the shares are what counts, and the step beside them was timed without it.
"""

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Sequence

import torch
from decode import prompts
from decode_loop import WARM_UP_STEPS, DecodeLoop
from generated_model import add_cache_argument, model_folder
from hardware import heading
from table import markdown, median
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from text_generation_server.config import ShardConfig
from text_generation_server.runner import load_runner

CONTEXT_TOKENS = 128
NUM_STEPS, NUM_PROFILED = 40, 10
# An operation belongs to the first part that names it or an operation that called it.
PARTS = {
    "matrices": ("linear_dynamic_fp16", "_linear_pointwise", "linear_dynamic", "linear", "addmm", "mm"),
    "attention": ("sparse_sampled_addmm", "embedding_bag", "_softmax", "scaled_dot_product", "index_select"),
    "keys and values written": ("index_copy_",),
    "norms": ("layer_norm", "linalg_vector_norm", "hypot", "rms_norm"),
    "logits to tokens": ("_log_softmax", "amax", "argmax", "logsumexp", "topk"),
}
OTHERS = ("other operations", "between operations")
BETWEEN = ("steps", "forward")  # whose own time is Python's, and a recorded part's


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Profile decode steps of the shard server in this process and print, for each part of a step, its share."
    )
    parser.add_argument("--models", nargs="+", default=["embedded", "560m"], metavar="MODEL", help="default: embedded 560m")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 16], metavar="N", help="default: 1 16")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: what the server would take")
    add_cache_argument(parser)
    return parser.parse_args(argv)


def measure(model: str, arguments: argparse.Namespace) -> list[list[str]]:
    folder = model_folder(model, arguments.cache)
    runner = load_runner(ShardConfig(model_id=str(folder), dtype=arguments.dtype, kv_cache_gib=1.0), folder)
    rows = []
    for size in arguments.batch_sizes:
        batch = prompts(size, CONTEXT_TOKENS, runner.model.config.vocab_size)
        loop = DecodeLoop(runner, batch, 1 + WARM_UP_STEPS + NUM_STEPS + NUM_PROFILED)
        step_seconds = median(loop.time_steps(NUM_STEPS))
        shares = [f"{share:.0%}" for share in _shares(loop).values()]
        dtype = str(runner.dtype).removeprefix("torch.")
        rows.append([folder.name, dtype, str(size), f"{step_seconds * 1e3:.1f} ms", *shares])
    return rows


def _shares(loop: DecodeLoop) -> dict[str, float]:
    with profile(activities=[ProfilerActivity.CPU]) as profiler, torch.profiler.record_function("steps"):
        for _ in range(NUM_PROFILED):
            loop.step()
    seconds: Counter[str] = Counter()
    for event in profiler.events():
        seconds[_part(event)] += event.self_cpu_time_total
    parts = (*PARTS, *OTHERS)
    return {part: seconds[part] / sum(seconds.values()) for part in parts}


def _part(event: FunctionEvent) -> str:
    if event.name in BETWEEN:
        return "between operations"
    while True:
        name = event.name.rpartition("::")[2]
        for part, names in PARTS.items():
            if name in names or (part == "attention" and name.startswith(names)):
                return part
        if event.cpu_parent is None or event.cpu_parent.name == "steps":
            return "other operations"
        event = event.cpu_parent


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])
    logging.basicConfig(level=logging.WARNING)
    rows = [row for model in arguments.models for row in measure(model, arguments)]
    print(f"{heading()}\n\nContext {CONTEXT_TOKENS} tokens; a step (median of {NUM_STEPS}) and where its time goes.\n")
    print(markdown(("model", "dtype", "batch", "step", *PARTS, *OTHERS), rows))


if __name__ == "__main__":
    main()

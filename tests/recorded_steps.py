"""Decode steps recorded on a CPU: a record is played by running its function again, which sees the same memory, as CUDA's
graphs do. To be imported after `triton_interpreter`."""

from collections.abc import Callable

import torch

from runner_steps import BLOCKS_PER_SEQUENCE
from text_generation_server.attention.paged_triton import TritonAttention
from text_generation_server.decode_graphs import DecodeGraphs
from text_generation_server.runner import Runner


class Again:
    """A recorder that counts what it records and plays."""

    def __init__(self, refused: tuple[int, ...] = ()) -> None:
        self.refused = refused
        self.num_records = self.num_plays = 0

    def record(self, function: Callable[[], None]) -> Callable[[], object]:
        self.num_records += 1
        if self.num_records in self.refused:
            raise RuntimeError("operation not permitted when stream is capturing")
        function()

        def play() -> None:
            self.num_plays += 1
            function()

        return play


@torch.inference_mode()
def with_graphs(runner: Runner, sizes: list[int], recorder: Again) -> Runner:
    attention = runner.attention
    runner.attention = TritonAttention(runner.cache, attention.slopes)
    runner.graphs = DecodeGraphs(
        runner.model, runner.attention, runner.sampler, sizes, BLOCKS_PER_SEQUENCE, runner.block_size, runner.device, recorder
    )
    return runner

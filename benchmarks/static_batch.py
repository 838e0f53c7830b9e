"""StaticBatch: the peer: transformers' own `generate` of prompts that start together, are equally long and end together.

In: a model folder and token ids. Out: seconds, of each decode step or of the whole. That is the most that batching without
a scheduler can give: no request arrives late and none is padded.
"""

import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList


class StepClock(LogitsProcessor):
    """Looks at the clock whenever logits are there; changes nothing."""

    def __init__(self) -> None:
        self.readings: list[float] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if scores.is_cuda:
            torch.cuda.synchronize(scores.device)
        self.readings.append(time.perf_counter())
        return scores


class StaticBatch:
    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self.device = device
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()

    def time_steps(self, prompts: Sequence[Sequence[int]], num_steps: int, num_warm_up: int) -> list[float]:
        """Seconds between one step's logits and the next one's, without the prompts and the first `num_warm_up` steps."""
        clock = StepClock()
        self._generate(prompts, 1 + num_warm_up + num_steps, LogitsProcessorList([clock]))
        readings = clock.readings[num_warm_up:]
        return [later - earlier for earlier, later in itertools.pairwise(readings)]

    def time_whole(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> float:
        """Seconds from the prompts to the last token."""
        start_seconds = time.perf_counter()
        self._generate(prompts, max_new_tokens, LogitsProcessorList())
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start_seconds

    def _generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, processors: LogitsProcessorList) -> None:
        token_ids = torch.tensor(prompts, device=self.device)
        output = self.model.generate(
            token_ids,
            attention_mask=torch.ones_like(token_ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            logits_processor=processors,
        )
        assert output.shape[1] == token_ids.shape[1] + max_new_tokens, "the peer ended early: the ratio would be wrong"

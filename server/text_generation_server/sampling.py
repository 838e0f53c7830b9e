"""Sampling: how a sequence's next token is chosen, as its driver asked for it.

In: a SamplingParameters message. Out: the same with defaults filled in and checked.
"""

import dataclasses
import math

from text_generation_proto.shard_pb2 import SamplingParameters
from text_generation_server.errors import StepError


@dataclasses.dataclass(frozen=True, slots=True)
class Sampling:
    """SamplingParameters with their defaults filled in; `None` turns a filter off."""

    do_sample: bool
    temperature: float
    top_k: int | None
    top_p: float | None
    repetition_penalty: float
    seed: int
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    typical_p: float | None = None
    logit_bias: dict[int, float] = dataclasses.field(default_factory=dict)
    watermark: bool = False

    @property
    def changes_logits(self) -> bool:
        """Whether anything at all is to be done before temperature and filters: for most requests there is not."""
        penalties = self.repetition_penalty != 1.0 or self.frequency_penalty or self.presence_penalty
        return bool(penalties or self.logit_bias or self.watermark)

    @classmethod
    def from_proto(cls, message: SamplingParameters) -> "Sampling":
        """
        Raises:
            StepError: a value out of range.
        """
        sampling = cls(
            do_sample=message.do_sample,
            temperature=message.temperature if message.HasField("temperature") else 1.0,
            top_k=message.top_k if message.HasField("top_k") else None,
            top_p=message.top_p if message.HasField("top_p") and message.top_p < 1 else None,
            repetition_penalty=message.repetition_penalty if message.HasField("repetition_penalty") else 1.0,
            seed=message.seed,
            frequency_penalty=message.frequency_penalty,
            presence_penalty=message.presence_penalty,
            typical_p=message.typical_p if message.HasField("typical_p") and message.typical_p != 1 else None,
            logit_bias=dict(message.logit_bias),
            watermark=message.watermark,
        )
        sampling._check()
        return sampling

    def _check(self) -> None:
        if not (self.temperature > 0 and self.repetition_penalty > 0):
            raise StepError("temperature and repetition_penalty must be strictly positive")
        if self.top_k == 0 or (self.top_p is not None and not self.top_p > 0):
            raise StepError("top_k and top_p must be strictly positive")
        if self.typical_p is not None and not 0 < self.typical_p <= 1:
            raise StepError("typical_p must be in (0, 1]")
        if not all(map(math.isfinite, (self.frequency_penalty, self.presence_penalty, *self.logit_bias.values()))):
            raise StepError("frequency_penalty, presence_penalty and logit_bias must be finite")

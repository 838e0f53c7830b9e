"""Sequence: one request's tokens, blocks and progress, and the Request that it was made from.

In: a checked request. Out: the state that the scheduler moves on. Derived numbers are properties, so they cannot drift; one
that never changes is kept, because it is asked for at every token.
Knows nothing of text, HTTP or shards.
"""

import dataclasses
import enum
import time
from collections.abc import Mapping

TopToken = tuple[int, float]  # token id and log-probability


@dataclasses.dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How a next token is chosen. `None` turns a filter off; greedy requests keep penalties and biases."""

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    watermark: bool = False
    seed: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A generation as validation lets it through: token ids and checked limits."""

    prompt_token_ids: list[int]
    max_new_tokens: int
    sampling: SamplingParameters = SamplingParameters()
    stop: tuple[str, ...] = ()
    keep_stop: bool = True  # whether a stop sequence stays in the text that it ends
    num_top_tokens: int = 0  # alternatives wanted at each position
    prompt_logprobs: bool = False  # whether the prompt's own tokens are to be rated
    shown_start_token_id: int | None = None  # what a decoder begins with, where that is wanted instead


class Status(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclasses.dataclass(frozen=True, slots=True)
class PromptScore:
    """How likely one token of the prompt was after those before it, and which would have been the most likely ones."""

    logprob: float
    top_tokens: list[TopToken]


@dataclasses.dataclass(slots=True)
class Sequence:
    """State of one request in the engine. Positions count from 0 over prompt and output together.

    `num_scheduled` positions have been sent to the shards, [0, num_scheduled): their keys and values are computed or in
    flight. `num_pending` tokens are sampled or being sampled there and not known here yet: that is the pipeline's lead. Where
    shards may guess, both say what is the case if all guesses are right.
    """

    id: int
    request: Request
    arrival_seconds: float = dataclasses.field(default_factory=time.monotonic)
    token_ids: list[int] = dataclasses.field(init=False)
    num_prompt_tokens: int = dataclasses.field(init=False)
    num_wanted: int = dataclasses.field(init=False)  # tokens of prompt and answer, if nothing else ends it
    status: Status = Status.WAITING
    num_scheduled: int = 0
    num_pending: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    num_crashes: int = 0
    first_scheduled_seconds: float | None = None
    block_ids: list[int] = dataclasses.field(default_factory=list)
    num_registered_blocks: int = 0  # that others can find
    block_hashes: list[bytes] = dataclasses.field(default_factory=list)  # of its tokens, whether or not they have blocks
    prompt_scores: dict[int, PromptScore] = dataclasses.field(default_factory=dict)  # by position, from 1 on

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.num_wanted = self.num_prompt_tokens + self.request.max_new_tokens

    @property
    def num_tokens(self) -> int:
        """Known tokens and those on their way."""
        return len(self.token_ids) + self.num_pending

    @property
    def num_unscheduled(self) -> int:
        return self.num_tokens - self.num_scheduled

    @property
    def wants_token(self) -> bool:
        """Whether one more position is all that is left to compute, and the tokens on their way do not fill `max_new_tokens`:
        the end that is known beforehand."""
        num_tokens = self.num_tokens
        return num_tokens - self.num_scheduled == 1 and num_tokens < self.num_wanted

    @property
    def finished(self) -> bool:
        return self.status is Status.FINISHED

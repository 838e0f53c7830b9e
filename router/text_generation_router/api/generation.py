"""Generation: all sequences of one HTTP request on their way through the engine.

In: checked requests. Out: their tokens as they come, or whole answers; and what headers, metrics and the log say of it.
The engine lets go of them when the `with` block ends, however it ends. Knows nothing of bodies.
"""

import dataclasses
import logging
import time
from types import TracebackType

from text_generation_router.engine import Engine, Place
from text_generation_router.metrics import Metrics
from text_generation_router.sequence import Request, Sequence
from text_generation_router.stopping import FinishReason
from text_generation_router.stream import GenerationStream, Mailbox, TokenEvent

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Arrival:
    """When an HTTP request came, and its place among those in flight until it is in the engine."""

    start_seconds: float
    place: Place


@dataclasses.dataclass(frozen=True, slots=True)
class Checked:
    """The sequences of one HTTP request, which may run, and how many characters their prompts have."""

    requests: list[Request]
    num_characters: int


@dataclasses.dataclass(slots=True)
class Answer:
    """What one sequence has come to. `finish_reason` and `text` are there at the end."""

    index: int  # which of the requests
    stream: GenerationStream
    num_tokens: int = 0
    finish_reason: FinishReason | None = None
    text: str = ""
    events: list[TokenEvent] = dataclasses.field(default_factory=list)

    @property
    def sequence(self) -> Sequence:
        return self.stream.sequence

    @property
    def num_hidden(self) -> int:
        """Characters that its tokens' texts have before the answer begins."""
        return sum(len(event.text) for event in self.events) - len(self.text)

    @property
    def mean_logprob(self) -> float:
        return sum(event.logprob for event in self.events) / max(1, len(self.events))

    @property
    def shown_seed(self) -> int | None:
        sampling = self.sequence.request.sampling
        return sampling.seed if sampling.do_sample else None



class Generation:
    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        checked: Checked,
        arrival: Arrival,
        compute_type: str,
    ) -> None:
        """
        Raises:
            NotReady, Overloaded: the engine does not take them.
        """
        self._metrics = metrics
        self._num_characters = checked.num_characters
        self._start_seconds = arrival.start_seconds
        self._valid_seconds = time.monotonic()
        self._compute_type = compute_type
        self._mailbox = Mailbox()
        arrival.place.free()
        streams = engine.submit(checked.requests, self._mailbox)
        self.answers = [Answer(index, stream) for index, stream in enumerate(streams)]
        self._by_stream = {answer.stream: answer for answer in self.answers}
        self._num_running = len(streams)

    def __enter__(self) -> "Generation":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for answer in self.answers:
            answer.stream.cancel()
            self._log(answer)
        if all(answer.finish_reason for answer in self.answers):
            self._measure()

    def __aiter__(self) -> "Generation":
        """Every sequence's tokens in the order they come, until all have ended.

        Raises:
            RequestError: one of them failed.
        """
        return self

    async def __anext__(self) -> tuple[Answer, TokenEvent]:
        if self._num_running == 0:
            raise StopAsyncIteration
        stream, event = await self._mailbox.get()
        answer = self._by_stream[stream]
        answer.num_tokens += 1
        if event.finish_reason is not None:
            answer.finish_reason, answer.text = event.finish_reason, event.generated_text or ""
            self._num_running -= 1
        return answer, event

    async def finished(self) -> list[Answer]:
        """All answers, complete, in the order of the requests.

        Raises:
            RequestError: one of them failed.
        """
        async for answer, event in self:
            answer.events.append(event)
        return self.answers

    def first_headers(self) -> dict[str, str]:
        """What is known before the first token."""
        return {"x-compute-type": self._compute_type, "x-compute-characters": str(self._num_characters)}

    def headers(self) -> dict[str, str]:
        """Times in whole milliseconds, `x-compute-time` in seconds, as the original has them."""
        total = time.monotonic() - self._start_seconds
        inference = self._inference_seconds(total)
        return {
            **self.first_headers(),
            "x-compute-time": f"{total:.6f}",
            "x-total-time": _milliseconds(total),
            "x-validation-time": _milliseconds(self._valid_seconds - self._start_seconds),
            "x-queue-time": _milliseconds(self._queue_seconds),
            "x-inference-time": _milliseconds(inference),
            "x-time-per-token": _milliseconds(inference / max(1, self._longest)),
            "x-prompt-tokens": str(self.num_prompt_tokens),
            "x-generated-tokens": str(self.num_tokens),
        }

    @property
    def num_prompt_tokens(self) -> int:
        """Each prompt counts once, however many answers it has."""
        return sum(map(len, self._prompts))

    @property
    def _prompts(self) -> list[list[int]]:
        """Copies of a request share its token ids."""
        prompts = [answer.sequence.request.prompt_token_ids for answer in self.answers]
        return list({id(prompt): prompt for prompt in prompts}.values())

    @property
    def num_tokens(self) -> int:
        return sum(answer.num_tokens for answer in self.answers)

    @property
    def _queue_seconds(self) -> float:
        return max(answer.stream.queue_seconds for answer in self.answers)

    @property
    def _longest(self) -> int:
        return max(answer.num_tokens for answer in self.answers)

    def _inference_seconds(self, total_seconds: float) -> float:
        return max(0.0, total_seconds - (self._valid_seconds - self._start_seconds) - self._queue_seconds)

    def _measure(self) -> None:
        total = time.monotonic() - self._start_seconds
        inference, metrics = self._inference_seconds(total), self._metrics
        metrics.request_duration.observe(total)
        metrics.request_validation_duration.observe(self._valid_seconds - self._start_seconds)
        metrics.request_queue_duration.observe(self._queue_seconds)
        metrics.request_inference_duration.observe(inference)
        metrics.request_mean_time_per_token_duration.observe(inference / max(1, self._longest))
        metrics.request_generated_tokens.observe(self.num_tokens)
        for prompt in self._prompts:
            metrics.request_input_length.observe(len(prompt))
        metrics.request_max_new_tokens.observe(max(answer.sequence.request.max_new_tokens for answer in self.answers))

    def _log(self, answer: Answer) -> None:
        sequence = answer.sequence
        logger.info(
            "request finished id=%d prompt_tokens=%d cached_tokens=%d generated_tokens=%d finish_reason=%s "
            "queue_seconds=%.4f total_seconds=%.4f",
            sequence.id,
            sequence.num_prompt_tokens,
            sequence.num_cached_tokens,
            answer.num_tokens,
            answer.finish_reason or "aborted",
            answer.stream.queue_seconds,
            time.monotonic() - self._start_seconds,
        )


def by_likelihood(answers: list[Answer]) -> list[Answer]:
    """Those whose tokens were the likeliest on average come first."""
    return sorted(answers, key=lambda answer: answer.mean_logprob, reverse=True)


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))

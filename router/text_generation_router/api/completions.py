"""/v1/completions: texts or token ids go in, what follows them comes out.

In: HTTP requests. Out: OpenAI's completions, whole or in chunks, in the order of the prompts. With `echo` and `logprobs`
the prompt's own tokens are rated too, which is how evaluation harnesses measure a model.
"""

import dataclasses

from aiohttp import web

from text_generation_router.api.generation import Answer, Checked, Generation, by_likelihood
from text_generation_router.api.openai_request import (
    Envelope,
    finish_reason,
    native_parameters,
    num_choices,
    openai_parameters,
    usage,
)
from text_generation_router.api.route import ARRIVAL, GENERATION_ERRORS, Route, json_response
from text_generation_router.api.serving import Serving
from text_generation_router.api.token_logprobs import TokenLogprobs
from text_generation_router.errors import BatchSizeExceeded, SuffixNotSupported, ValidationError
from text_generation_router.schema.body import openai_error
from text_generation_router.schema.completions import Completion, CompletionChoice, CompletionRequest
from text_generation_router.schema.openai import OpenAIFinishReason, Usage
from text_generation_router.sequence import Request
from text_generation_router.sse import EventStream
from text_generation_router.stream import TokenEvent
from text_generation_router.tokenizer import Tokenizer
from text_generation_router.validation import Prompt, copies


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """How many sequences each prompt has, how many of them are shown, and what is shown of them."""

    prompts: list[Prompt]
    num_shown: int
    num_computed: int
    echo: bool
    logprobs: bool
    prompt_only: bool  # `max_tokens: 0` with `echo`: one token is computed, because a step is, and not shown

    @property
    def num_characters(self) -> int:
        return sum(len(prompt.text) for prompt in self.prompts)


class CompletionsApi:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> list[Route]:
        return [
            Route(
                method="POST",
                path="/v1/completions",
                handler=self._complete,
                summary="Continue texts",
                tag="OpenAI",
                requests=(CompletionRequest,),
                responses=(Completion,),
                events=(Completion,),
                errors=GENERATION_ERRORS,
                generates=True,
                openai_errors=True,
            )
        ]

    async def _complete(self, http_request: web.Request) -> web.StreamResponse:
        return await self.answer(http_request, await self._serving.read(http_request, CompletionRequest))

    async def answer(self, http_request: web.Request, body: CompletionRequest) -> web.StreamResponse:
        serving = self._serving
        plan = _plan(body, serving.config.max_client_batch_size)
        requests = [await self._check(body, prompt, plan) for prompt in plan.prompts]
        checked = Checked([copy for request in requests for copy in copies(request, plan.num_computed)], plan.num_characters)
        with serving.generation(checked, http_request[ARRIVAL]) as generation:
            envelope = Envelope.new("cmpl", serving.model_name)
            if body.stream:
                return await self._stream(http_request, body, plan, generation, envelope)
            shown = _best(await generation.finished(), plan)
        choices = [_choice(index, answer, plan, serving.tokenizer) for index, answer in enumerate(shown)]
        return json_response(_completion(envelope, choices, _usage(generation, plan)), headers=generation.headers())

    async def _check(self, body: CompletionRequest, prompt: Prompt, plan: _Plan) -> Request:
        parameters = native_parameters(body, 1 if plan.prompt_only else body.max_tokens)
        parameters.repetition_penalty = body.repetition_penalty
        parameters.top_n_tokens = body.logprobs
        parameters.decoder_input_details = plan.echo and plan.logprobs
        return await self._serving.validation.check(prompt, parameters, self._serving.limits, openai_parameters(body))

    async def _stream(
        self,
        http_request: web.Request,
        body: CompletionRequest,
        plan: _Plan,
        generation: Generation,
        envelope: Envelope,
    ) -> web.StreamResponse:
        rated = [TokenLogprobs(self._serving.tokenizer) for _ in generation.answers]
        async with EventStream(http_request, generation.first_headers(), openai_error) as events:
            async for answer, event in generation:
                if choice := self._chunk_choice(answer, event, plan, rated[answer.index]):
                    await events.send(_completion(envelope, [choice]))
            if body.stream_options and body.stream_options.include_usage:
                await events.send(_completion(envelope, [], _usage(generation, plan)))
            await events.send_done()
        return events.response

    def _chunk_choice(
        self, answer: Answer, event: TokenEvent, plan: _Plan, rated: TokenLogprobs
    ) -> CompletionChoice | None:
        """The prompt goes out with the first token, the end with the last one. None where there is nothing to say."""
        text = "" if plan.prompt_only else event.text
        if plan.echo and answer.num_tokens == 1:
            prompt_text = _prompt_text(answer, plan, self._serving.tokenizer)
            text = prompt_text + text
            rated.add_prompt(answer.sequence, prompt_text)
        if plan.logprobs and not plan.prompt_only:
            rated.add_token(event)
        reason = _reason(answer, plan) if answer.finish_reason else None
        logprobs = rated.take() if plan.logprobs else None
        return CompletionChoice(answer.index, text, logprobs, reason) if text or reason or logprobs else None


def _plan(body: CompletionRequest, max_prompts: int) -> _Plan:
    """
    Raises:
        ValidationError, SuffixNotSupported, BatchSizeExceeded: no such completion can be had.
    """
    if body.suffix is not None:
        raise SuffixNotSupported()
    prompts = _prompts(body.prompt)
    if len(prompts) > max_prompts:
        raise BatchSizeExceeded(max_prompts)
    shown, computed = num_choices("n", body.n), num_choices("best_of", body.best_of)
    if body.best_of is not None and computed < shown:
        raise ValidationError(f"`best_of` must be >= `n`. Given: {computed} and {shown}")
    if body.stream and computed > shown:
        raise ValidationError("`best_of` != 1 is not supported when streaming tokens")
    return _Plan(
        prompts,
        num_shown=shown,
        num_computed=max(shown, computed),
        echo=bool(body.echo),
        logprobs=body.logprobs is not None,
        prompt_only=bool(body.echo) and body.max_tokens == 0,
    )


def _prompts(prompt: str | list[str | int | list[int]]) -> list[Prompt]:
    """One or several, each as text or as token ids. Raises: ValidationError."""
    if isinstance(prompt, str):
        return [Prompt(prompt)]
    if not prompt:
        raise ValidationError("Empty array detected. Do not use an empty array for the prompt.")
    if token_ids := [part for part in prompt if isinstance(part, int)]:
        if len(token_ids) < len(prompt):
            raise ValidationError("`prompt` must hold either token ids, texts or lists of token ids")
        return [Prompt(token_ids=token_ids)]
    return [Prompt(part) if isinstance(part, str) else Prompt(token_ids=part) for part in prompt if not isinstance(part, int)]


def _best(answers: list[Answer], plan: _Plan) -> list[Answer]:
    """Of each prompt's answers the likeliest ones, in the order of the prompts."""
    if plan.num_computed == plan.num_shown:
        return answers
    shown: list[Answer] = []
    for first in range(0, len(answers), plan.num_computed):
        group = answers[first : first + plan.num_computed]
        shown += by_likelihood(group)[: plan.num_shown]
    return shown


def _choice(index: int, answer: Answer, plan: _Plan, tokenizer: Tokenizer) -> CompletionChoice:
    rated = TokenLogprobs(tokenizer, answer.num_hidden)
    text = "" if plan.prompt_only else answer.text
    if plan.echo:
        prompt_text = _prompt_text(answer, plan, tokenizer)
        text = prompt_text + text
        rated.add_prompt(answer.sequence, prompt_text)
    for event in answer.events if plan.logprobs and not plan.prompt_only else ():
        rated.add_token(event)
    logprobs = rated.take() if plan.logprobs else None
    return CompletionChoice(index, text, logprobs, _reason(answer, plan))


def _reason(answer: Answer, plan: _Plan) -> OpenAIFinishReason:
    """A prompt alone has the length that was asked for, whatever the token was that is not shown."""
    return "length" if plan.prompt_only else finish_reason(answer.finish_reason)


def _prompt_text(answer: Answer, plan: _Plan, tokenizer: Tokenizer) -> str:
    prompt = plan.prompts[answer.index // plan.num_computed]
    return prompt.text if prompt.token_ids is None else tokenizer.decode(prompt.token_ids)


def _completion(envelope: Envelope, choices: list[CompletionChoice], total: Usage | None = None) -> Completion:
    return Completion(
        envelope.id, "text_completion", envelope.created, envelope.model, envelope.system_fingerprint, choices, total
    )


def _usage(generation: Generation, plan: _Plan) -> Usage:
    return usage(generation.num_prompt_tokens, 0 if plan.prompt_only else generation.num_tokens)

"""/v1/chat/completions: a conversation goes in, the assistant's next words come out.

In: HTTP requests. Out: OpenAI's chat completions, whole or in chunks. The conversation becomes a prompt, and is checked,
before a stream opens.
"""

import dataclasses

from aiohttp import web

from text_generation_router.api.conversation import to_messages
from text_generation_router.api.generation import Answer, Checked, Generation
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
from text_generation_router.api.visible_tokens import VisibleTokens
from text_generation_router.schema.body import openai_error
from text_generation_router.schema.chat import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChatRequest,
    ChunkChoice,
    Delta,
    OutputMessage,
    TokenLogprob,
    TopLogprob,
)
from text_generation_router.schema.openai import Usage
from text_generation_router.sequence import Request
from text_generation_router.sse import EventStream
from text_generation_router.stream import TokenEvent
from text_generation_router.tokenizer import Tokenizer
from text_generation_router.validation import Prompt, copies


class ChatApi:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> list[Route]:
        return [
            Route(
                method="POST",
                path="/v1/chat/completions",
                handler=self._chat,
                summary="The next message of a conversation",
                tag="OpenAI",
                requests=(ChatRequest,),
                responses=(ChatCompletion,),
                events=(ChatChunk,),
                errors=GENERATION_ERRORS,
                generates=True,
                openai_errors=True,
            )
        ]

    async def _chat(self, http_request: web.Request) -> web.StreamResponse:
        return await self.answer(http_request, await self._serving.read(http_request, ChatRequest))

    async def answer(self, http_request: web.Request, body: ChatRequest) -> web.StreamResponse:
        with self._serving.generation(await self.check(body), http_request[ARRIVAL]) as generation:
            envelope = Envelope.new("chatcmpl", self._serving.model_name)
            if body.stream:
                return await self._stream(http_request, body, generation, envelope)
            answers = await generation.finished()
        choices = [_choice(body, answer, self._serving.tokenizer) for answer in answers]
        return json_response(_completion(envelope, choices, _usage(generation)), headers=generation.headers())

    async def check(self, body: ChatRequest) -> Checked:
        """The conversation as a prompt, once for each answer."""
        number, serving = num_choices("n", body.n), self._serving
        text = await serving.tokenizer.in_worker(serving.chat_template.render, to_messages(body))
        return Checked(copies(await self._check_prompt(body, text), number), len(text))

    async def _check_prompt(self, body: ChatRequest, text: str) -> Request:
        max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        parameters = native_parameters(body, max_tokens)
        parameters.top_n_tokens = body.top_logprobs
        prompt = Prompt(text, add_special_tokens=False)
        openai, serving = openai_parameters(body), self._serving
        request = await serving.validation.check(prompt, parameters, serving.limits, openai)
        return request if body.logprobs else dataclasses.replace(request, num_top_tokens=0)

    async def _stream(
        self, http_request: web.Request, body: ChatRequest, generation: Generation, envelope: Envelope
    ) -> web.StreamResponse:
        tokenizer = self._serving.tokenizer
        visible = [VisibleTokens(tokenizer) for _ in generation.answers]
        async with EventStream(http_request, generation.first_headers(), openai_error) as events:
            for answer in generation.answers:
                await events.send(_chunk(envelope, [ChunkChoice(answer.index, Delta("assistant", ""))]))
            async for answer, event in generation:
                shown = visible[answer.index].push(event) if body.logprobs else []
                logprobs = _logprobs(shown, tokenizer) if shown else None
                for choice in _chunk_choices(answer, event, logprobs):
                    await events.send(_chunk(envelope, [choice]))
            if body.stream_options and body.stream_options.include_usage:
                await events.send(_chunk(envelope, [], _usage(generation)))
            await events.send_done()
        return events.response


def _completion(envelope: Envelope, choices: list[ChatChoice], total: Usage) -> ChatCompletion:
    return ChatCompletion(
        envelope.id, "chat.completion", envelope.created, envelope.model, envelope.system_fingerprint, choices, total
    )


def _choice(body: ChatRequest, answer: Answer, tokenizer: Tokenizer) -> ChatChoice:
    visible = VisibleTokens(tokenizer)
    logprobs = None
    if body.logprobs:
        logprobs = _logprobs([shown for event in answer.events for shown in visible.push(event)], tokenizer)
    message = OutputMessage("assistant", answer.text)
    return ChatChoice(answer.index, message, logprobs, finish_reason(answer.finish_reason))


def _chunk(envelope: Envelope, choices: list[ChunkChoice], total: Usage | None = None) -> ChatChunk:
    return ChatChunk(
        envelope.id,
        "chat.completion.chunk",
        envelope.created,
        envelope.model,
        envelope.system_fingerprint,
        choices,
        total,
    )


def _chunk_choices(answer: Answer, event: TokenEvent, logprobs: ChatLogprobs | None) -> list[ChunkChoice]:
    """Nothing for a token without text of its own, and the end in a choice by itself."""
    choices = []
    if event.text or logprobs:
        choices.append(ChunkChoice(answer.index, Delta(content=event.text), logprobs))
    if answer.finish_reason:
        choices.append(ChunkChoice(answer.index, Delta(), finish_reason=finish_reason(answer.finish_reason)))
    return choices


def _logprobs(events: list[TokenEvent], tokenizer: Tokenizer) -> ChatLogprobs:
    return ChatLogprobs([_logprob(event, tokenizer) for event in events])


def _logprob(event: TokenEvent, tokenizer: Tokenizer) -> TokenLogprob:
    top = [TopLogprob(*_named(token_id, logprob, tokenizer)) for token_id, logprob in event.top_tokens]
    return TokenLogprob(*_named(event.token_id, event.logprob, tokenizer), top)


def _named(token_id: int, logprob: float, tokenizer: Tokenizer) -> tuple[str, float, list[int]]:
    return tokenizer.token_text(token_id), logprob, list(tokenizer.token_bytes(token_id))


def _usage(generation: Generation) -> Usage:
    return usage(generation.num_prompt_tokens, generation.num_tokens)

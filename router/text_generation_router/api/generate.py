"""The native API: /generate, /generate_stream, and / which is both.

In: HTTP requests. Out: what the engine generated for them, as one JSON body or as a stream of events. A request is
checked before its stream opens, so what is wrong with it is a status.
"""

from aiohttp import web

from text_generation_router.api.generation import Answer, Checked, Generation, by_likelihood
from text_generation_router.api.route import ARRIVAL, GENERATION_ERRORS, Route, json_response
from text_generation_router.api.serving import Serving
from text_generation_router.schema.body import native_error
from text_generation_router.schema.generate import (
    BestOfSequence,
    CompatGenerateRequest,
    Details,
    GenerateParameters,
    GenerateRequest,
    GenerateResponse,
    PrefillToken,
    StreamDetails,
    StreamResponse,
    Token,
)
from text_generation_router.sequence import TopToken
from text_generation_router.sse import EventStream
from text_generation_router.stream import TokenEvent
from text_generation_router.tokenizer import Tokenizer
from text_generation_router.validation import Prompt, copies, num_answers


class GenerateApi:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> list[Route]:
        return [
            Route(
                method="POST",
                path="/generate",
                handler=self._generate,
                summary="Continue a text",
                tag="Text Generation Inference",
                requests=(GenerateRequest,),
                responses=(GenerateResponse,),
                errors=GENERATION_ERRORS,
                generates=True,
            ),
            Route(
                method="POST",
                path="/generate_stream",
                handler=self._generate_stream,
                summary="Continue a text, token by token as server-sent events",
                tag="Text Generation Inference",
                requests=(GenerateRequest,),
                events=(StreamResponse,),
                errors=GENERATION_ERRORS,
                generates=True,
            ),
            Route(
                method="POST",
                path="/",
                handler=self._compat,
                summary="Continue a text: as /generate, in a list, or with `stream` as /generate_stream",
                tag="Text Generation Inference",
                requests=(CompatGenerateRequest,),
                responses=(list[GenerateResponse],),
                events=(StreamResponse,),
                errors=GENERATION_ERRORS,
                generates=True,
            ),
        ]

    async def _generate(self, http_request: web.Request) -> web.StreamResponse:
        body = await self._serving.read(http_request, GenerateRequest)
        parameters = body.parameters or GenerateParameters()
        response, headers = await self._answer(http_request, body.inputs, parameters)
        return json_response(response, headers=headers)

    async def _generate_stream(self, http_request: web.Request) -> web.StreamResponse:
        body = await self._serving.read(http_request, GenerateRequest)
        return await self._stream(http_request, body.inputs, body.parameters or GenerateParameters())

    async def _compat(self, http_request: web.Request) -> web.StreamResponse:
        body = await self._serving.read(http_request, CompatGenerateRequest)
        return await self.answer_compat(http_request, body)

    async def answer_compat(self, http_request: web.Request, body: CompatGenerateRequest) -> web.StreamResponse:
        """Where the Hub's own API was, the prompt is part of the answer unless a client says otherwise, or the answer is not
        what follows on it."""
        parameters = body.parameters or GenerateParameters()
        if parameters.return_full_text is None:
            parameters.return_full_text = self._serving.limits.decoder_start_token_id is None
        if body.stream:
            return await self._stream(http_request, body.inputs, parameters)
        response, headers = await self._answer(http_request, body.inputs, parameters)
        return json_response([response], headers=headers)

    async def _answer(
        self, http_request: web.Request, inputs: str, parameters: GenerateParameters
    ) -> tuple[GenerateResponse, dict[str, str]]:
        checked = await self.check(inputs, parameters)
        with self._serving.generation(checked, http_request[ARRIVAL]) as generation:
            answers = await generation.finished()
        return _response(answers, inputs, parameters, self._serving.tokenizer), generation.headers()

    async def check(self, inputs: str, parameters: GenerateParameters, *, streamed: bool = False) -> Checked:
        """One sequence for each answer that the best one is chosen from."""
        serving = self._serving
        request = await serving.validation.check(Prompt(inputs), parameters, serving.limits, streamed=streamed)
        return Checked(copies(request, num_answers(parameters)), len(inputs))

    async def _stream(
        self, http_request: web.Request, inputs: str, parameters: GenerateParameters
    ) -> web.StreamResponse:
        checked = await self.check(inputs, parameters, streamed=True)
        with self._serving.generation(checked, http_request[ARRIVAL]) as generation:
            async with EventStream(http_request, generation.first_headers(), native_error) as events:
                await self._send_all(events, generation, inputs, parameters)
        return events.response

    async def _send_all(
        self, events: EventStream, generation: Generation, inputs: str, parameters: GenerateParameters
    ) -> None:
        tokenizer = self._serving.tokenizer
        async for answer, event in generation:
            response = StreamResponse(answer.num_tokens, _token(event, tokenizer))
            if event.top_tokens:
                response.top_tokens = _top_tokens(event.top_tokens, tokenizer)
            if answer.finish_reason:
                response.generated_text = _full_text(answer, inputs, parameters)
                if parameters.details:
                    response.details = _stream_details(answer)
            await events.send(response)


def _response(
    answers: list[Answer], inputs: str, parameters: GenerateParameters, tokenizer: Tokenizer
) -> GenerateResponse:
    """The answer whose tokens were the likeliest on average; the others are among its details."""
    best, *others = by_likelihood(answers)
    response = GenerateResponse(_full_text(best, inputs, parameters))
    if parameters.details or parameters.decoder_input_details:
        response.details = Details(
            best.finish_reason or "",
            best.num_tokens,
            best.shown_seed,
            _prefill(best, tokenizer),
            [_token(event, tokenizer) for event in best.events],
        )
        if others:
            response.details.best_of_sequences = [
                _best_of_sequence(other, inputs, parameters, tokenizer) for other in others
            ]
        if best.sequence.request.num_top_tokens:
            response.details.top_tokens = [_top_tokens(event.top_tokens, tokenizer) for event in best.events]
    return response


def _best_of_sequence(
    answer: Answer, inputs: str, parameters: GenerateParameters, tokenizer: Tokenizer
) -> BestOfSequence:
    sequence = BestOfSequence(
        _full_text(answer, inputs, parameters),
        answer.finish_reason or "",
        answer.num_tokens,
        answer.shown_seed,
        _prefill(answer, tokenizer),
        [_token(event, tokenizer) for event in answer.events],
    )
    if answer.sequence.request.num_top_tokens:
        sequence.top_tokens = [_top_tokens(event.top_tokens, tokenizer) for event in answer.events]
    return sequence


def _full_text(answer: Answer, inputs: str, parameters: GenerateParameters) -> str:
    return inputs + answer.text if parameters.return_full_text else answer.text


def _stream_details(answer: Answer) -> StreamDetails:
    num_prompt_tokens = answer.sequence.num_prompt_tokens
    return StreamDetails(answer.finish_reason or "", answer.num_tokens, answer.shown_seed, num_prompt_tokens)


def _prefill(answer: Answer, tokenizer: Tokenizer) -> list[PrefillToken]:
    request = answer.sequence.request
    if (start := request.shown_start_token_id) is not None:
        return [PrefillToken(start, tokenizer.token_text(start), None)]
    if not request.prompt_logprobs:
        return []
    scores = answer.sequence.prompt_scores
    return [
        PrefillToken(token_id, tokenizer.token_text(token_id), scores[position].logprob if position else None)
        for position, token_id in enumerate(request.prompt_token_ids)
    ]


def _token(event: TokenEvent, tokenizer: Tokenizer) -> Token:
    text = tokenizer.token_text(event.token_id) if event.special else event.text
    return Token(event.token_id, text, event.logprob, event.special)


def _top_tokens(top_tokens: list[TopToken], tokenizer: Tokenizer) -> list[Token]:
    return [
        Token(token_id, tokenizer.token_text(token_id), logprob, token_id in tokenizer.special_token_ids)
        for token_id, logprob in top_tokens
    ]

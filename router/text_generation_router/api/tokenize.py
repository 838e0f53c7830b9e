"""/tokenize and /chat_tokenize: what a prompt is made of, without generating.

In: HTTP requests. Out: tokens with their places in the text, in bytes of its UTF-8 as the original counts them.
"""

import itertools

from aiohttp import web

from text_generation_router.api.conversation import to_messages
from text_generation_router.api.route import READING_ERRORS, Route, json_response
from text_generation_router.api.serving import Serving
from text_generation_router.errors import ValidationError
from text_generation_router.schema.chat import ChatRequest, ChatTokenizeResponse
from text_generation_router.schema.generate import GenerateRequest, SimpleToken
from text_generation_router.tokenizer import TokenSpan


class TokenizeApi:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> list[Route]:
        return [
            Route(
                method="POST",
                path="/tokenize",
                handler=self._tokenize,
                summary="Tokens of `inputs`",
                tag="Text Generation Inference",
                requests=(GenerateRequest,),
                responses=(list[SimpleToken],),
                errors=READING_ERRORS,
            ),
            Route(
                method="POST",
                path="/chat_tokenize",
                handler=self._chat_tokenize,
                summary="The prompt that a conversation becomes, and its tokens",
                tag="Text Generation Inference",
                requests=(ChatRequest,),
                responses=(ChatTokenizeResponse,),
                errors=READING_ERRORS,
            ),
        ]

    async def _tokenize(self, http_request: web.Request) -> web.StreamResponse:
        self._serving.served()
        body = await self._serving.read(http_request, GenerateRequest)
        tokens = await self._tokens(body.inputs, add_special_tokens=True)
        return await self._response(tokens)

    async def _chat_tokenize(self, http_request: web.Request) -> web.StreamResponse:
        self._serving.served()
        body = await self._serving.read(http_request, ChatRequest)
        messages = to_messages(body)
        text = await self._serving.tokenizer.in_worker(self._serving.chat_template.render, messages)
        tokens = await self._tokens(text, add_special_tokens=False)
        return await self._response(ChatTokenizeResponse(tokens, text))

    async def _response(self, answer: object) -> web.StreamResponse:
        """It may be many times as long as the longest body that is read."""
        return await self._serving.tokenizer.in_worker(json_response, answer)

    async def _tokens(self, text: str, add_special_tokens: bool) -> list[SimpleToken]:
        if not text:
            raise ValidationError("`inputs` cannot be empty")
        try:
            spans = await self._serving.tokenizer.encode_spans(text, add_special_tokens)
        except (TypeError, ValueError) as error:
            raise ValidationError(f"tokenizer error {error}") from error
        return await self._serving.tokenizer.in_worker(_simple_tokens, text, spans)


def _simple_tokens(text: str, spans: list[TokenSpan]) -> list[SimpleToken]:
    if text.isascii():
        return [SimpleToken(span.token_id, text[span.start : span.end], span.start, span.end) for span in spans]
    offsets = [0, *itertools.accumulate(len(character.encode(errors="replace")) for character in text)]
    return [
        SimpleToken(span.token_id, text[span.start : span.end], offsets[span.start], offsets[span.end]) for span in spans
    ]

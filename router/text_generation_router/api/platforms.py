"""/invocations for SageMaker and /vertex for Vertex AI: the other routes' requests in those platforms' wrapping.

In: HTTP requests. Out: what the route that is meant answers.
"""

import itertools

from aiohttp import web

from text_generation_router.api.chat import ChatApi
from text_generation_router.api.completions import CompletionsApi
from text_generation_router.api.generate import GenerateApi
from text_generation_router.api.generation import Checked, by_likelihood
from text_generation_router.api.route import ARRIVAL, GENERATION_ERRORS, OPENAI_ERRORS, Route, json_response
from text_generation_router.api.serving import Serving
from text_generation_router.errors import ValidationError
from text_generation_router.schema.body import decode, is_given
from text_generation_router.schema.chat import ChatChunk, ChatCompletion, ChatRequest
from text_generation_router.schema.completions import Completion, CompletionRequest
from text_generation_router.schema.generate import (
    CompatGenerateRequest,
    GenerateParameters,
    GenerateRequest,
    GenerateResponse,
    InvocationRequest,
    StreamResponse,
    VertexRequest,
    VertexResponse,
)


class PlatformsApi:
    def __init__(
        self, serving: Serving, generate: GenerateApi, chat: ChatApi, completions: CompletionsApi
    ) -> None:
        self._serving = serving
        self._generate = generate
        self._chat = chat
        self._completions = completions

    def routes(self) -> list[Route]:
        return [
            Route(
                method="POST",
                path="/invocations",
                handler=self._invoke,
                summary="SageMaker: as /, /v1/chat/completions or /v1/completions, by what the body holds",
                tag="Platforms",
                requests=(CompatGenerateRequest, ChatRequest, CompletionRequest),
                responses=(list[GenerateResponse], ChatCompletion, Completion),
                events=(StreamResponse, ChatChunk, Completion),
                errors=GENERATION_ERRORS,
                generates=True,
                openai_errors=None,
            ),
            Route(
                method="POST",
                path="/vertex",
                handler=self._predict,
                summary="Vertex AI: several requests of /generate or /v1/chat/completions in one",
                tag="Platforms",
                requests=(VertexRequest,),
                responses=(VertexResponse,),
                errors=GENERATION_ERRORS,
                generates=True,
            ),
        ]

    async def _invoke(self, http_request: web.Request) -> web.StreamResponse:
        data = await self._serving.read_bytes(http_request)
        kind = decode(data, InvocationRequest)
        if is_given(kind.inputs):
            return await self._generate.answer_compat(http_request, decode(data, CompatGenerateRequest))
        http_request[OPENAI_ERRORS] = is_given(kind.messages) or is_given(kind.prompt)
        if is_given(kind.messages):
            return await self._chat.answer(http_request, decode(data, ChatRequest))
        if is_given(kind.prompt):
            return await self._completions.answer(http_request, decode(data, CompletionRequest))
        raise ValidationError("one of `inputs`, `messages` and `prompt` must be set")

    async def _predict(self, http_request: web.Request) -> web.StreamResponse:
        body = await self._serving.read(http_request, VertexRequest)
        if not body.instances:
            raise ValidationError("`instances` cannot be empty")
        instances = [await self._check(instance) for instance in body.instances]
        requests = [request for instance in instances for request in instance.requests]
        checked = Checked(requests, sum(instance.num_characters for instance in instances))
        with self._serving.generation(checked, http_request[ARRIVAL]) as generation:
            answers = iter(await generation.finished())
        own = [list(itertools.islice(answers, len(instance.requests))) for instance in instances]
        return json_response(VertexResponse([by_likelihood(each)[0].text for each in own]))

    async def _check(self, instance: bytes) -> Checked:
        if is_given(decode(instance, InvocationRequest).messages):
            return await self._chat.check(decode(instance, ChatRequest))
        body = decode(instance, GenerateRequest)
        return await self._generate.check(body.inputs, body.parameters or GenerateParameters())

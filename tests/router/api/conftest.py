"""The whole application over a fake engine, and a client that holds every answer against the OpenAPI document.

The engine answers with the texts that a test puts in its mouth; most capital letters are a token each.
"""

import copy
import dataclasses
import json
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

import tiny_tokenizers
from fake_engine import LOGPROB, FakeEngine, FakeStream
from text_generation_router.api.serving import Serving
from text_generation_router.app import build_app
from text_generation_router.chat_template import ChatTemplate
from text_generation_router.config import RouterConfig
from text_generation_router.metrics import Metrics
from text_generation_router.sequence import Request
from text_generation_router.stream import Mailbox
from text_generation_router.tokenizer import Tokenizer
from text_generation_router.validation import Validation

EOS = 2
TEXT = "that is 日本🙂"
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'refused' %}{{ raise_exception('no such role') }}{% endif %}"
    "{{ message.role[0] }}:{{ message.content }}|{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)


class ScriptedEngine(FakeEngine):
    """Says the same to everyone, or with several texts another one to each sequence, in turn."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer, [])
        self.logprobs: dict[int, float] = {}  # of all of a sequence's tokens, by its id
        self.say(TEXT)

    def say(self, *texts: str, end: bool = True) -> None:
        """Without the end there is no end-of-sequence token: `max_new_tokens` or a stop sequence must end it."""
        self.text = texts[0]
        self.scripts = [[*self.tokenizer._encode(text, False), *([EOS] if end else [])] for text in texts]
        self.token_ids = self.scripts[0]

    def submit(self, requests: list[Request], mailbox: Mailbox) -> list[FakeStream]:
        if self.refusal:
            raise self.refusal
        new = []
        for sequence_id, request in enumerate(requests, start=len(self.streams)):
            speaker = copy.copy(self)
            speaker.token_ids = self.scripts[sequence_id % len(self.scripts)]
            rated = _Rated(mailbox, self.logprobs.get(sequence_id, LOGPROB))
            new.append(FakeStream(speaker, request, sequence_id, rated))
        self.requests += requests
        self.streams += new
        return new


class _Rated:
    def __init__(self, mailbox: Mailbox, logprob: float) -> None:
        self._mailbox = mailbox
        self._logprob = logprob

    def put(self, stream: FakeStream, event: Any) -> None:
        if not isinstance(event, Exception):
            event.logprob = self._logprob
        self._mailbox.put(stream, event)


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Any
    text: str

    @property
    def json(self) -> Any:
        assert self.headers["content-type"].startswith("application/json")
        return json.loads(self.text)

    @property
    def data(self) -> list[str]:
        """What the events of a stream carry."""
        assert self.status == 200 and self.headers["content-type"].startswith("text/event-stream")
        assert self.text.endswith("\n\n")
        blocks = self.text.removesuffix("\n\n").split("\n\n")
        assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
        return [block.removeprefix("data: ") for block in blocks]

    @property
    def events(self) -> list[Any]:
        return [json.loads(data) for data in self.data if data != "[DONE]"]

    @property
    def choices(self) -> list[Any]:
        """Of an OpenAI stream."""
        return [choice for event in self.events for choice in event["choices"]]


class Client:
    def __init__(self, http: TestClient, document: dict[str, Any]) -> None:
        self.http = http
        self.document = document

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.send("GET", path, headers=headers)

    async def post(self, path: str, body: Any = None, **fields: Any) -> Answer:
        return await self.send("POST", path, json=fields if body is None else body)

    async def generate(self, path: str = "/generate", inputs: str = "AAAA", **parameters: Any) -> Answer:
        return await self.post(path, inputs=inputs, parameters=parameters)

    async def chat(self, content: Any = "AAAA", **fields: Any) -> Answer:
        return await self.post("/v1/chat/completions", messages=[{"role": "user", "content": content}], **fields)

    async def complete(self, prompt: Any = "AAAA", **fields: Any) -> Answer:
        return await self.post("/v1/completions", prompt=prompt, **fields)

    async def send(self, method: str, path: str, **options: Any) -> Answer:
        async with self.http.request(method, path, **options) as response:
            answer = Answer(response.status, response.headers, await response.text())
        self._check(method, path, answer)
        return answer

    async def metric(self, series: str) -> float:
        lines = (await self.get("/metrics")).text.splitlines()
        return float(dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))[series])

    def _check(self, method: str, path: str, answer: Answer) -> None:
        """Every answer of a documented route is documented: its status, its content type, its fields."""
        operation = self.document["paths"].get(path, {}).get(method.lower())
        if operation is None:
            return
        content = operation["responses"][str(answer.status)].get("content")
        if content is None:
            assert answer.text == ""
            return
        media_type = answer.headers["content-type"].split(";")[0]
        described = content[media_type]
        if media_type == "text/event-stream":
            for data in answer.data:
                self.check_schema({"data": data}, described["itemSchema"])
        elif media_type == "application/json":
            self.check_schema(answer.json, described["schema"])

    def check_schema(self, value: Any, schema: dict[str, Any]) -> None:
        assert _conforms(value, schema, self.document["components"]["schemas"]), f"{value} is no {schema}"


def _conforms(value: Any, schema: Any, parts: dict[str, Any]) -> bool:
    """As much of JSON Schema as the document has, and stricter: an object has no fields that are not in it."""
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema:
        return _conforms(value, parts[schema["$ref"].removeprefix("#/components/schemas/")], parts)
    if "anyOf" in schema:
        return any(_conforms(value, option, parts) for option in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    if "const" in schema:
        return value == schema["const"]
    if "contentSchema" in schema:
        return value.startswith("{") and _conforms(json.loads(value), schema["contentSchema"], parts)
    kind = schema.get("type")
    if kind == "array":
        return isinstance(value, list) and all(_conforms(item, schema.get("items", {}), parts) for item in value)
    if kind == "object":
        fields = schema.get("properties", {})
        others = schema.get("additionalProperties", False if fields else {})
        known = set(schema.get("required", ())) <= set(value) if isinstance(value, dict) else False
        return known and all(_conforms(value[name], fields.get(name, others), parts) for name in value)
    types = {"null": type(None), "boolean": bool, "integer": int, "number": (int, float), "string": str}
    return kind is None or (isinstance(value, types[kind]) and (kind == "boolean" or not isinstance(value, bool)))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_tokenizers.save(tiny_tokenizers.byte_level(), folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE, "eos_token": "</s>"}))
    return folder


@pytest.fixture(scope="session")
def tokenizer(model_folder):
    tokenizer = Tokenizer(num_workers=2)
    tokenizer.load(model_folder)
    yield tokenizer
    tokenizer.close()


@pytest.fixture
def engine(tokenizer):
    return ScriptedEngine(tokenizer)


@pytest.fixture
def serving(engine, tokenizer, model_folder):
    return make_serving(engine, tokenizer, model_folder)


def make_serving(engine, tokenizer, model_folder, **options):
    config = RouterConfig(tokenizer_path=str(model_folder), **options)
    chat_template = ChatTemplate()
    chat_template.load(model_folder, None)
    return Serving(config, engine, tokenizer, chat_template, Validation(tokenizer, config), Metrics())


@pytest.fixture
async def client(serving):
    async with _serve(serving) as http:
        yield await _documented(http)


@pytest.fixture
async def client_of(engine, tokenizer, model_folder):
    """Makes a client of a router with other flags."""
    servers = []

    async def start(**options):
        http = _serve(make_serving(engine, tokenizer, model_folder, **options))
        servers.append(await http.__aenter__())
        return await _documented(http)

    yield start
    for http in servers:
        await http.close()


def _serve(serving):
    return TestClient(TestServer(build_app(serving), handler_cancellation=True))


async def _documented(http):
    return Client(http, await (await http.get("/api-doc/openapi.json")).json())

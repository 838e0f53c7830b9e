"""Load: concurrent clients that stream answers over HTTP, and when each of their tokens came.

In: a server's URL and prompts. Out: one Answer a request. It shares the machine with what it measures, so it looks into no
event, but for the last ones of each stream: it counts them.
"""

import asyncio
import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp

EVENT_END = b"\n\n"
LAST_BYTES = 2000  # of a stream; its closing events are in them
TIMEOUT_SECONDS = 3600.0


@dataclasses.dataclass(slots=True)
class Answer:
    """Readings of one clock, in seconds."""

    start_seconds: float
    token_seconds: list[float] = dataclasses.field(default_factory=list)

    @property
    def first_token_seconds(self) -> float:
        return self.token_seconds[0] - self.start_seconds

    @property
    def gap_seconds(self) -> list[float]:
        """Between one token and the next one."""
        return [later - earlier for earlier, later in itertools.pairwise(self.token_seconds)]


@dataclasses.dataclass(frozen=True, slots=True)
class Api:
    """How a server is asked for a stream of tokens, and how one knows their number."""

    path: str
    body: Callable[[str, int], dict[str, Any]]  # of a prompt and the number of tokens wanted
    num_closing_events: int = 0  # at the end of each stream, without a token
    num_tokens: Callable[[bytes], int] | None = None  # said in the closing events; None: every other event is a token


def _generate_body(prompt: str, max_new_tokens: int) -> dict[str, Any]:
    return {"inputs": prompt, "parameters": {"max_new_tokens": max_new_tokens, "do_sample": False}}


GENERATE_STREAM = Api("/generate_stream", _generate_body)


class Load:
    def __init__(self, url: str, prompts: Iterator[str], max_new_tokens: int, api: Api = GENERATE_STREAM) -> None:
        self._url = url + api.path
        self._prompts = prompts
        self._api = api
        self.max_new_tokens = max_new_tokens

    async def run(
        self, num_clients: int, num_rounds: int, on_token: Callable[[Answer], None] = lambda answer: None
    ) -> list[Answer]:
        """Each client sends `num_rounds` requests, the next one as soon as the last one is answered. `on_token` is called with
        an answer whenever tokens have come for it."""
        bodies = [[self._body() for _ in range(num_rounds)] for _ in range(num_clients)]
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
            answers = await asyncio.gather(*(self._client(session, own, on_token) for own in bodies))
        return [answer for own in answers for answer in own]

    async def _client(
        self, session: aiohttp.ClientSession, bodies: list[bytes], on_token: Callable[[Answer], None]
    ) -> list[Answer]:
        return [await self._request(session, body, on_token) for body in bodies]

    async def _request(self, session: aiohttp.ClientSession, body: bytes, on_token: Callable[[Answer], None]) -> Answer:
        answer = Answer(time.perf_counter())
        headers = {"content-type": "application/json"}
        async with session.post(self._url, data=body, headers=headers) as response:
            if response.status != 200:
                raise RuntimeError(f"status {response.status}: {await response.text()}")
            rest, last_events = b"", b""
            async for chunk in response.content.iter_any():
                *events, rest = (rest + chunk).split(EVENT_END)
                if num_tokens := sum(event.startswith(b"data:") for event in events):
                    answer.token_seconds += [time.perf_counter()] * num_tokens
                    on_token(answer)
                last_events = (last_events + chunk)[-LAST_BYTES:]
        self._close(answer, last_events)
        return answer

    def _close(self, answer: Answer, last_events: bytes) -> None:
        """Raises: RuntimeError: it is not as long as it should be."""
        del answer.token_seconds[len(answer.token_seconds) - self._api.num_closing_events :]
        num_tokens = self._api.num_tokens(last_events) if self._api.num_tokens else len(answer.token_seconds)
        if num_tokens != self.max_new_tokens or not answer.token_seconds:
            raise RuntimeError(f"{num_tokens} tokens came for {self.max_new_tokens}; {last_events!r}")

    def _body(self) -> bytes:
        return json.dumps(self._api.body(next(self._prompts), self.max_new_tokens)).encode()

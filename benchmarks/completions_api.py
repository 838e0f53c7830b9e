"""CompletionsApi: how servers are asked for a stream in OpenAI's way, and whether all of them do the same work.

In: the number of tokens that each prompt has. Out: an Api for Load, which refuses an answer to a prompt of another length:
then the server has split the text in another way. Also single answers, and how far they are the same.
"""

import itertools
import json
import re
import statistics
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from load import Api

PROMPT_TOKENS = re.compile(rb'"prompt_tokens": ?(\d+)')
COMPLETION_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')


def completions_api(num_prompt_tokens: int, num_closing_events: int, **more_fields: Any) -> Api:
    """`more_fields` of the body are those that only this server knows."""

    def body(prompt: str, max_new_tokens: int) -> dict[str, Any]:
        wanted = {"prompt": prompt, "max_tokens": max_new_tokens, "temperature": 0}
        return {**wanted, "stream": True, "stream_options": {"include_usage": True}, **more_fields}

    return Api("/v1/completions", body, num_closing_events, _counter(num_prompt_tokens))


def complete(url: str, api: Api, prompt: str, max_new_tokens: int) -> str:
    """The whole answer at once."""
    body = {name: value for name, value in api.body(prompt, max_new_tokens).items() if not name.startswith("stream")}
    request = urllib.request.Request(url + api.path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as response:
        text: str = json.load(response)["choices"][0]["text"]
        return text


def agreement(texts: Sequence[str], others: Sequence[str]) -> float:
    """The part of the texts up to where the others say something else, on average. Rounding may part two long answers."""
    return statistics.fmean(_same_share(text, other) for text, other in zip(texts, others, strict=True))


def _same_share(text: str, other: str) -> float:
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False))
    return len(list(same)) / max(1, len(text), len(other))


def _counter(num_prompt_tokens: int) -> Callable[[bytes], int]:
    def count(last_events: bytes) -> int:
        prompt_tokens, completion_tokens = PROMPT_TOKENS.findall(last_events), COMPLETION_TOKENS.findall(last_events)
        if not completion_tokens:
            raise RuntimeError(f"the stream says nothing of its length: {last_events!r}")
        if int(prompt_tokens[-1]) != num_prompt_tokens:
            raise RuntimeError(f"the server counts {int(prompt_tokens[-1])} tokens in a prompt of {num_prompt_tokens}")
        return int(completion_tokens[-1])

    return count

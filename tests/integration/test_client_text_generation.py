"""The original's own Python client from PyPI, unchanged."""

import pytest
from served import Served
from text_generation import AsyncClient, Client
from text_generation.errors import OverloadedError, ValidationError

PROMPT = "ROMEO:"


@pytest.fixture
def client(url: str) -> Client:
    return Client(url)


def test_generate(client: Client, shared_server: Served) -> None:
    answer = client.generate(PROMPT, max_new_tokens=8, decoder_input_details=True)
    assert answer.generated_text == shared_server.generate(PROMPT, max_new_tokens=8)
    assert answer.details.finish_reason == "length" and answer.details.generated_tokens == 8
    assert [token.text for token in answer.details.prefill] == ["ROMEO", ":"]


def test_generate_stream(client: Client, shared_server: Served) -> None:
    events = list(client.generate_stream(PROMPT, max_new_tokens=8))
    text = "".join(event.token.text for event in events)
    assert text == events[-1].generated_text == shared_server.generate(PROMPT, max_new_tokens=8)


def test_best_of_and_the_other_parameters(client: Client) -> None:
    answer = client.generate(
        PROMPT,
        do_sample=True,
        max_new_tokens=6,
        best_of=2,
        repetition_penalty=1.1,
        frequency_penalty=0.1,
        return_full_text=True,
        stop_sequences=["zzz"],
        temperature=0.9,
        top_k=40,
        top_p=0.9,
        truncate=5,
        typical_p=0.9,
        watermark=True,
        top_n_tokens=2,
    )
    (other,) = answer.details.best_of_sequences
    assert answer.generated_text.startswith(PROMPT)
    assert mean_logprob(answer.details.tokens) >= mean_logprob(other.tokens)
    assert all(len(top) == 2 for top in answer.details.top_tokens)


def mean_logprob(tokens: list) -> float:
    return sum(token.logprob for token in tokens) / len(tokens)


def test_chat(client: Client) -> None:
    answer = client.chat([{"role": "user", "content": "Who are you?"}], max_tokens=4, seed=1)
    assert answer.choices[0].message.content


def test_what_is_wrong_is_a_validation_error(client: Client) -> None:
    with pytest.raises(ValidationError, match="`max_new_tokens` must be <="):
        client.generate(PROMPT, max_new_tokens=10**6)
    with pytest.raises(ValidationError, match=r"`stop` supports up to 4 stop sequences\. Given: 9"):
        list(client.generate_stream(PROMPT, stop_sequences=["a"] * 9))


async def test_the_asynchronous_client(url: str, shared_server: Served) -> None:
    client = AsyncClient(url)
    answer = await client.generate(PROMPT, max_new_tokens=8)
    assert answer.generated_text == shared_server.generate(PROMPT, max_new_tokens=8)
    events = [event async for event in client.generate_stream(PROMPT, max_new_tokens=8)]
    assert events[-1].generated_text == answer.generated_text


def test_an_overloaded_server_is_an_overloaded_error(embedded_model, tmp_path) -> None:
    with Served(embedded_model, tmp_path, "--max-concurrent-requests", "1") as served:
        other = served.stream(PROMPT, max_new_tokens=1500)
        next(other)
        with pytest.raises(OverloadedError):
            Client(f"http://127.0.0.1:{served.port}").generate(PROMPT, max_new_tokens=2)
        other.close()

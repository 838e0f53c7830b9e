"""huggingface_hub's InferenceClient, unchanged."""

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError, ValidationError
from served import Served

PROMPT = "ROMEO:"
MESSAGES = [{"role": "user", "content": "Who are you?"}]


@pytest.fixture
def client(url: str) -> InferenceClient:
    return InferenceClient(model=url, provider="hf-inference")


@pytest.fixture
def text(shared_server: Served) -> str:
    return shared_server.generate(PROMPT, max_new_tokens=8)


def test_text_generation(client: InferenceClient, text: str) -> None:
    assert client.text_generation(PROMPT, max_new_tokens=8, return_full_text=False) == text
    assert client.text_generation(PROMPT, max_new_tokens=8) == PROMPT + text, "the Hub's own API leaves the prompt in"


def test_text_generation_as_a_stream(client: InferenceClient, text: str) -> None:
    assert "".join(client.text_generation(PROMPT, max_new_tokens=8, stream=True)) == text


def test_details(client: InferenceClient, text: str) -> None:
    answer = client.text_generation(
        PROMPT,
        max_new_tokens=8,
        return_full_text=False,
        details=True,
        decoder_input_details=True,
        top_n_tokens=2,
    )
    assert answer.generated_text == text
    assert (answer.details.finish_reason, answer.details.generated_tokens) == ("length", 8)
    assert [token.text for token in answer.details.prefill] == ["ROMEO", ":"]
    assert answer.details.prefill[0].logprob is None and answer.details.prefill[1].logprob < 0
    assert "".join(token.text for token in answer.details.tokens) == text
    assert [top[0]["id"] for top in answer.details.top_tokens] == [token.id for token in answer.details.tokens]


def test_details_of_a_stream(client: InferenceClient, text: str) -> None:
    events = list(
        client.text_generation(PROMPT, max_new_tokens=8, stream=True, details=True, return_full_text=False)
    )
    assert "".join(event.token.text for event in events) == events[-1].generated_text == text
    assert events[-1].details.finish_reason == "length"


def test_every_parameter_of_the_client_is_taken(client: InferenceClient) -> None:
    answer = client.text_generation(
        PROMPT,
        best_of=2,
        details=True,
        do_sample=True,
        frequency_penalty=0.5,
        max_new_tokens=6,
        repetition_penalty=1.1,
        return_full_text=False,
        stop=["zzz"],
        temperature=0.9,
        top_k=40,
        top_n_tokens=1,
        top_p=0.95,
        truncate=5,
        typical_p=0.95,
        watermark=True,
    )
    assert len(answer.details.best_of_sequences) == 1
    assert client.text_generation(PROMPT, seed=7, do_sample=True, max_new_tokens=6) == client.text_generation(
        PROMPT, seed=7, do_sample=True, max_new_tokens=6
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_parameter_is_a_validation_error(client: InferenceClient, stream: bool) -> None:
    with pytest.raises(ValidationError, match="`temperature` must be strictly positive"):
        list(client.text_generation(PROMPT, temperature=-1.0, stream=stream))


def test_chat_completion(client: InferenceClient) -> None:
    answer = client.chat_completion(MESSAGES, max_tokens=6, temperature=0, logprobs=True, top_logprobs=2)
    choice = answer.choices[0]
    assert choice.finish_reason == "length" and choice.message.role == "assistant"
    assert "".join(entry.token for entry in choice.logprobs.content) == choice.message.content
    assert all(len(entry.top_logprobs) == 2 for entry in choice.logprobs.content)
    assert answer.usage.completion_tokens == 6 and answer.usage.total_tokens == answer.usage.prompt_tokens + 6


def test_chat_completion_as_a_stream(client: InferenceClient) -> None:
    whole = client.chat_completion(MESSAGES, max_tokens=6, temperature=0).choices[0].message.content
    *chunks, last = client.chat_completion(
        MESSAGES, max_tokens=6, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    assert chunks[-1].choices[0].finish_reason == "length"
    assert last.usage.completion_tokens == 6


def test_a_wrong_chat_parameter_says_what_is_wrong(client: InferenceClient) -> None:
    with pytest.raises(HfHubHTTPError, match="`temperature` must be strictly positive"):
        client.chat_completion(MESSAGES, temperature=-1)


def test_endpoint_info_and_health(client: InferenceClient, url: str) -> None:
    assert client.get_endpoint_info(model=url)["max_total_tokens"] == 2048
    assert client.health_check(model=url)

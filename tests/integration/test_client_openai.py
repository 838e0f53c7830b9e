"""OpenAI's own client, unchanged."""

import openai
import pytest
from served import Served
from tokenizers import Tokenizer

PROMPT = "ROMEO:"
MESSAGES = [{"role": "user", "content": "Who are you?"}]


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id.endswith("tiny-bloom")


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tgi", messages=MESSAGES, max_tokens=5, temperature=0)
    assert answer.id and answer.object == "chat.completion"
    assert answer.choices[0].finish_reason == "length" and answer.choices[0].message.content
    assert answer.usage.completion_tokens == 5


def test_a_chat_stream_adds_up_to_the_whole_answer(client: openai.OpenAI) -> None:
    arguments = {"model": "tgi", "messages": MESSAGES, "max_tokens": 8, "temperature": 0}
    whole = client.chat.completions.create(**arguments)
    *chunks, last = client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **arguments)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant"] + [None] * (len(chunks) - 1)
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert last.choices == [] and last.usage == whole.usage
    assert len({chunk.id for chunk in [*chunks, last]}) == 1


def test_a_stop_text_is_cut_off(client: openai.OpenAI) -> None:
    arguments = {"model": "tgi", "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**arguments).choices[0].message.content
    assert whole is not None
    stop = whole[8:11]
    answer = client.chat.completions.create(stop=stop, **arguments).choices[0]
    assert (answer.message.content, answer.finish_reason) == (whole[: whole.index(stop)], "stop")
    chunks = list(client.chat.completions.create(stop=[stop], stream=True, **arguments))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole[: whole.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_logprobs_with_bytes(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tgi", messages=MESSAGES, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    text = b"".join(bytes(entry.bytes) for entry in content).decode()
    assert text == answer.choices[0].message.content
    for entry in content:
        assert entry.logprob == entry.top_logprobs[0].logprob == max(top.logprob for top in entry.top_logprobs)


def test_several_answers_to_one_question(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tgi", messages=MESSAGES, max_tokens=12, n=3, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3
    again = client.chat.completions.create(model="tgi", messages=MESSAGES, max_tokens=12, n=3, seed=1)
    assert [choice.message.content for choice in again.choices] == [choice.message.content for choice in answer.choices]
    assert answer.usage.completion_tokens == 36


def test_a_bias_forbids_a_token_and_another_forces_one(client: openai.OpenAI, shared_server: Served) -> None:
    arguments = {"model": "tgi", "prompt": PROMPT, "max_tokens": 3, "temperature": 0}
    _, tokens = shared_server.post("/tokenize", {"inputs": "king"})
    forced = client.completions.create(logit_bias={str(tokens[0]["id"]): 100}, **arguments).choices[0].text
    assert forced == tokens[0]["text"] * 3
    newline = shared_server.post("/tokenize", {"inputs": "\n"})[1][0]["id"]
    assert client.completions.create(**arguments).choices[0].text.startswith("\n")
    assert not client.completions.create(logit_bias={str(newline): -100}, **arguments).choices[0].text.startswith("\n")


def test_a_presence_penalty_keeps_words_from_coming_back(client: openai.OpenAI) -> None:
    arguments = {"model": "tgi", "prompt": PROMPT, "max_tokens": 60, "temperature": 0, "logprobs": 0}
    plain = client.completions.create(**arguments).choices[0].logprobs.tokens
    varied = client.completions.create(presence_penalty=2, frequency_penalty=2, **arguments).choices[0].logprobs.tokens
    assert len(set(varied)) > 1.5 * len(set(plain))


def test_completions_in_the_order_of_the_prompts(client: openai.OpenAI, shared_server: Served) -> None:
    prompts = [PROMPT, "JULIET:", "Good morrow"]
    answer = client.completions.create(model="tgi", prompt=prompts, max_tokens=6, temperature=0)
    assert [choice.text for choice in answer.choices] == [shared_server.generate(p, max_new_tokens=6) for p in prompts]
    chunks = list(client.completions.create(model="tgi", prompt=prompts, max_tokens=6, temperature=0, stream=True))
    for index, choice in enumerate(answer.choices):
        streamed = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert "".join(part.text for part in streamed) == choice.text and streamed[-1].finish_reason == "length"


def test_token_ids_echo_and_logprobs(client: openai.OpenAI, embedded_model) -> None:
    tokenizer = Tokenizer.from_file(str(embedded_model / "tokenizer.json"))
    token_ids = tokenizer.encode(PROMPT).ids
    answer = client.completions.create(
        model="tgi", prompt=token_ids, max_tokens=4, temperature=0, echo=True, logprobs=2
    ).choices[0]
    logprobs = answer.logprobs
    assert answer.text.startswith(PROMPT) and "".join(logprobs.tokens) == answer.text
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    assert [answer.text[start:][: len(token)] for start, token in zip(logprobs.text_offset, logprobs.tokens, strict=True)] == (
        logprobs.tokens
    )
    assert all(value < 0 for value in logprobs.token_logprobs[1:])
    echoed = client.completions.create(model="tgi", prompt=token_ids, max_tokens=0, echo=True, logprobs=2).choices[0]
    assert echoed.text == PROMPT
    assert echoed.logprobs.token_logprobs == logprobs.token_logprobs[: len(token_ids)]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [({"temperature": -1}, "validation"), ({"max_tokens": 10**7}, "validation"), ({"messages": []}, "validation")],
)
def test_what_is_wrong_is_an_unprocessable_entity(client: openai.OpenAI, arguments: dict, code: str, stream: bool) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as raised:
        client.chat.completions.create(**{"model": "tgi", "messages": MESSAGES, "stream": stream} | arguments)
    assert raised.value.code == code and raised.value.body["message"]


def test_an_overloaded_server_is_a_rate_limit(embedded_model, tmp_path) -> None:
    with Served(embedded_model, tmp_path, "--max-concurrent-requests", "1") as served:
        other = served.stream(PROMPT, max_new_tokens=1500)
        next(other)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="any", max_retries=0)
        with pytest.raises(openai.RateLimitError, match="Model is overloaded"):
            client.completions.create(model="tgi", prompt="a", max_tokens=4)
        other.close()


def test_a_key_is_asked_for(embedded_model, tmp_path) -> None:
    with Served(embedded_model, tmp_path, "--api-key", "first", "--api-key", "second") as served:
        url = f"http://127.0.0.1:{served.port}/v1"
        for key in ("first", "second"):
            openai.OpenAI(base_url=url, api_key=key).completions.create(model="tgi", prompt="a", max_tokens=1)
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url, api_key="FIRST").completions.create(model="tgi", prompt="a", max_tokens=1)

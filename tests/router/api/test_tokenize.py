import threading

import pytest

from text_generation_router.api import tokenize

TEXTS = ["AAAA", "é日本🙂", "that is 日本🙂 é", "🦜", " A\n", "</s>A"]


@pytest.mark.parametrize("text", TEXTS)
async def test_each_token_has_its_place_in_bytes(client, engine, text):
    tokens = (await client.post("/tokenize", inputs=text)).json
    assert [token["id"] for token in tokens] == engine.tokenizer._encode(text, True)
    for token in tokens:
        assert text.encode()[token["start"] : token["stop"]].decode() == token["text"]
    assert tokens[0]["start"] == 0 and tokens[-1]["stop"] == len(text.encode())


async def test_tokens_look_like_this(client, engine):
    assert (await client.post("/tokenize", inputs="é🙂")).json == [
        {"id": engine.tokenizer._encode("é", False)[0], "text": "é", "start": 0, "stop": 2},
        {"id": engine.tokenizer._encode("🙂", False)[0], "text": "🙂", "start": 2, "stop": 6},
    ]


async def test_prompts_longer_than_the_limit_are_tokenized_and_parameters_passed_over(client, engine):
    answer = await client.post("/tokenize", inputs="A" * 100, parameters={"truncate": 3, "temperature": -1})
    assert len(answer.json) == 100 and engine.requests == []


@pytest.mark.parametrize("name", ["_simple_tokens", "json_response"])
async def test_what_takes_long_for_a_long_text_holds_no_stream_up(client, monkeypatch, name):
    threads, function = [], getattr(tokenize, name)
    monkeypatch.setattr(tokenize, name, lambda *arguments: threads.append(threading.get_ident()) or function(*arguments))
    assert (await client.post("/tokenize", inputs="é")).status == 200
    assert len(threads) == 1 and threads[0] != threading.get_ident()


async def test_a_conversation_is_shown_as_the_prompt_that_it_becomes(client, engine):
    answer = await client.post("/chat_tokenize", messages=[{"role": "user", "content": "é"}])
    assert answer.json["templated_text"] == "u:é|a:"
    assert "".join(token["text"] for token in answer.json["tokenize_response"]) == "u:é|a:"
    assert answer.json["tokenize_response"][2]["stop"] == 4 and engine.requests == []


@pytest.mark.parametrize(
    ("route", "body", "error_type"),
    [
        ("/tokenize", {"inputs": ""}, "validation"),
        ("/tokenize", {}, "validation"),
        ("/chat_tokenize", {"messages": []}, "validation"),
        ("/chat_tokenize", {"messages": [{"role": "user"}]}, "validation"),
        ("/chat_tokenize", {"messages": [{"role": "refused", "content": "A"}]}, "template_error"),
    ],
)
async def test_what_has_no_tokens_is_a_422_in_the_native_shape(client, route, body, error_type):
    answer = await client.post(route, body)
    assert (answer.status, answer.json["error_type"], type(answer.json["error"])) == (422, error_type, str)


@pytest.mark.parametrize("route", ["/tokenize", "/chat_tokenize"])
async def test_before_there_is_a_model_it_is_a_503(client, engine, route):
    engine.model = engine.limits = None
    answer = await client.post(route, inputs="A", messages=[])
    assert (answer.status, answer.json["error_type"]) == (503, "not_ready")

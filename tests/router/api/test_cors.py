import pytest

from text_generation_router import errors

PAGE = "https://example.org"
ALLOWED = "Access-Control-Allow-Origin"


async def preflight(client, origin=PAGE, headers="authorization,content-type"):
    asks = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": headers}
    return await client.send("OPTIONS", "/v1/chat/completions", headers=asks)


async def test_any_page_may_ask_unless_told_otherwise(client):
    answer = await preflight(client)
    assert (answer.status, answer.headers[ALLOWED]) == (200, "*")
    assert {"GET", "POST"} <= set(answer.headers["Access-Control-Allow-Methods"].split(", "))
    allowed = answer.headers["Access-Control-Allow-Headers"].lower()
    assert "authorization" in allowed and "content-type" in allowed


async def test_a_preflight_needs_no_key(client_of):
    client = await client_of(api_key=("secret",))
    assert (await preflight(client)).status == 200


async def test_only_the_pages_that_are_named_may_ask(client_of):
    client = await client_of(cors_allow_origin=(PAGE, "http://localhost:8080"))
    for origin in (PAGE, "http://localhost:8080"):
        answer = await preflight(client, origin)
        assert (answer.headers[ALLOWED], answer.headers["Vary"]) == (origin, "Origin")
    for origin in ("https://example.org.evil.com", "http://example.org", "null", "HTTPS://EXAMPLE.ORG:444"):
        assert ALLOWED not in (await preflight(client, origin)).headers


async def test_a_star_among_them_means_all(client_of):
    client = await client_of(cors_allow_origin=(PAGE, "*"))
    assert (await preflight(client, "http://elsewhere")).headers[ALLOWED] == "*"


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/health", None, 200),
        ("POST", "/generate", {"inputs": "A"}, 200),
        ("POST", "/generate_stream", {"inputs": "A"}, 200),
        ("POST", "/v1/completions", {"prompt": "A", "stream": True}, 200),
        ("POST", "/generate", {"inputs": ""}, 422),
        ("GET", "/nowhere", None, 404),
        ("GET", "/generate", None, 405),
    ],
)
async def test_every_answer_is_marked_streams_and_errors_too(client, method, path, body, status):
    answer = await client.send(method, path, json=body, headers={"Origin": PAGE})
    assert (answer.status, answer.headers[ALLOWED]) == (status, "*")
    assert answer.headers["Access-Control-Expose-Headers"] == "*"


async def test_a_stream_that_breaks_off_and_a_missing_key_are_marked(client_of, engine):
    client = await client_of(api_key=("secret",))
    refused = await client.send("POST", "/generate", json={"inputs": "A"}, headers={"Origin": PAGE})
    assert (refused.status, refused.headers[ALLOWED]) == (401, "*")
    engine.failure = errors.GenerationFailed("x")
    headers = {"Origin": PAGE, "Authorization": "Bearer secret"}
    broken = await client.send("POST", "/generate_stream", json={"inputs": "A"}, headers=headers)
    assert broken.events and broken.headers[ALLOWED] == "*"


async def test_who_is_no_page_gets_no_marks(client):
    assert ALLOWED not in (await client.get("/health")).headers


async def test_options_without_a_question_is_another_method(client):
    assert (await client.send("OPTIONS", "/generate", headers={"Origin": PAGE})).status == 405

import asyncio
import dataclasses

import pytest
from aiohttp.test_utils import TestServer

from fakes import until
from text_generation_router.app import build_app
from text_generation_router.errors import Overloaded

READING_ROUTES = ["/generate", "/v1/completions", "/invocations", "/vertex", "/tokenize"]


def padded(num_bytes):
    body = b'{"inputs": "A", "prompt": "A", "instances": [{"inputs": "A"}]}'
    return body + b" " * (num_bytes - len(body))


@pytest.mark.parametrize("route", READING_ROUTES)
async def test_a_body_may_be_as_long_as_the_limit_and_no_longer(client_of, engine, route):
    client = await client_of(payload_limit=200)
    assert (await client.send("POST", route, data=padded(200))).status == 200
    num_requests = len(engine.requests)
    answer = await client.send("POST", route, data=padded(201))
    assert (answer.status, answer.json["error_type"]) == (413, "payload_too_large")
    error = answer.json["error"]
    assert (error["message"] if route.startswith("/v1") else error) == "The request body must have at most 200 bytes"
    assert len(engine.requests) == num_requests


async def test_a_body_sent_in_chunks_has_the_same_limit(client_of):
    client = await client_of(payload_limit=200)

    async def chunks(num_bytes):
        yield padded(num_bytes)[:150]
        yield padded(num_bytes)[150:]

    assert (await client.send("POST", "/generate", data=chunks(200))).status == 200
    assert (await client.send("POST", "/generate", data=chunks(300))).status == 413


async def test_a_body_that_is_not_in_the_encoding_it_claims_is_a_400(client):
    answer = await client.send("POST", "/generate", data=b"not gzip", headers={"content-encoding": "gzip"})
    assert answer.status == 400


@pytest.mark.parametrize("route", ["/generate", "/v1/chat/completions"])
async def test_a_body_that_does_not_come_is_a_408(serving, engine, route):
    async with TestServer(build_app(dataclasses.replace(serving, body_seconds=0.1))) as server:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(f'POST {route} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{"inputs"'.encode())
        head, _, body = (await asyncio.wait_for(reader.read(4096), 5)).partition(b"\r\n\r\n")
        writer.close()
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b'"request_timeout"' in body and b"did not come within 0.1 seconds" in body
    assert engine.requests == []


async def test_a_body_that_comes_slowly_is_read(serving):
    async with TestServer(build_app(serving)) as server:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n")
        for byte in b'{"inputs": "A"}':
            writer.write(bytes([byte]))
            await asyncio.sleep(0.005)
        assert (await asyncio.wait_for(reader.read(4096), 5)).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_an_overloaded_server_reads_no_bodies(serving, engine):
    engine.refusal = Overloaded()
    async with TestServer(build_app(serving)) as server:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(4096), 5)).startswith(b"HTTP/1.1 429 ")
        writer.close()


async def test_a_request_has_its_place_from_its_body_on(serving, engine, monkeypatch):
    """Who sends none keeps nobody out."""
    check, may_go_on = serving.validation.check, asyncio.Event()

    async def held(*arguments, **options):
        await may_go_on.wait()
        return await check(*arguments, **options)

    monkeypatch.setattr(serving.validation, "check", held)
    async with TestServer(build_app(serving)) as server:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n")
        await asyncio.sleep(0.1)
        assert engine.num_places == 0
        writer.write(b'{"inputs": "A"}')
        await until(lambda: engine.num_places == 1)
        may_go_on.set()
        assert (await asyncio.wait_for(reader.read(4096), 5)).startswith(b"HTTP/1.1 200 ")
        assert engine.num_places == 0
        writer.close()


async def test_a_place_that_was_lost_while_the_body_came_is_a_429(serving, engine, monkeypatch):
    async with TestServer(build_app(serving)) as server:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n")
        await asyncio.sleep(0.1)
        engine.refusal = Overloaded()
        monkeypatch.setattr(engine, "submit", lambda requests, mailbox: pytest.fail("it went on without a place"))
        writer.write(b'{"inputs": "A"}')
        assert (await asyncio.wait_for(reader.read(4096), 5)).startswith(b"HTTP/1.1 429 ")
        writer.close()

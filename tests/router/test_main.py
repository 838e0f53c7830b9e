import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest

import tiny_tokenizers
from fake_engine import FakeEngine
from fakes import until
from text_generation_router.__main__ import run_until_signal
from text_generation_router.api.serving import Serving
from text_generation_router.chat_template import ChatTemplate
from text_generation_router.config import RouterConfig
from text_generation_router.metrics import Metrics
from text_generation_router.startup import Startup
from text_generation_router.tokenizer import Tokenizer
from text_generation_router.validation import Validation


@pytest.fixture
def model_folder(tmp_path):
    return tiny_tokenizers.save(tiny_tokenizers.byte_level(), tmp_path)


@pytest.fixture
def port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def run_router(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "text_generation_router", "--hostname", "127.0.0.1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def test_a_port_in_use_is_one_line_and_exit_code_1(model_folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        finished = run_router("--tokenizer-path", model_folder, "--port", port)
    assert finished.returncode == 1
    last = finished.stderr.splitlines()[-1]
    assert last.startswith(f"Error: cannot listen on 127.0.0.1:{port}: ") and last.endswith("address already in use")
    assert "Traceback" not in finished.stderr


def test_a_folder_without_a_tokenizer_is_one_line_and_exit_code_1(tmp_path, port):
    finished = run_router("--tokenizer-path", str(tmp_path / "nowhere"), "--port", str(port))
    assert finished.returncode == 1
    assert finished.stderr.splitlines()[-1].startswith("Error: there is no tokenizer.json in ")
    assert "Traceback" not in finished.stderr


@contextlib.asynccontextmanager
async def router_process(port: int, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "text_generation_router", "--hostname", "127.0.0.1", "--port", str(port), *arguments)
    )
    try:
        async with asyncio.timeout(20):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_port_answers_before_the_shards_do_and_sigterm_ends_with_code_0(model_folder, port, tmp_path):
    arguments = ("--tokenizer-path", model_folder, "--shard-uds-path", str(tmp_path / "no-shards"))
    async with router_process(port, *arguments) as process, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        while (message := await health_error(session)) != "unhealthy: waiting for shards":
            assert message == "unhealthy: loading the tokenizer"
        process.terminate()
        assert await process.wait() == 0


async def test_before_there_is_a_model_health_says_how_far_the_launcher_is(port, tmp_path):
    status = tmp_path / "status"
    status.write_text(json.dumps({"stage": "downloading the model", "model_path": None}))
    async with router_process(port, "--launch-status-path", str(status)) as process:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            assert await health_error(session) == "unhealthy: downloading the model"
            async with session.post("/generate", json={"inputs": "a"}) as response:
                assert response.status == 503
                assert (await response.json())["error"] == "The model cannot answer yet: downloading the model"
        process.terminate()
        assert await process.wait() == 0


async def health_error(session: aiohttp.ClientSession) -> str:
    response = await first_answer(session, "/health")
    assert response.status == 503
    return str((await response.json())["error"])


async def first_answer(session: aiohttp.ClientSession, path: str) -> aiohttp.ClientResponse:
    while True:
        try:
            return await session.get(path)
        except aiohttp.ClientConnectorError:
            await asyncio.sleep(0.05)


async def stopped_while_running(
    model_folder: str, port: int, grace_seconds: float, finish_after: float, launch_status_path: str | None = None
):
    """The status of a request that runs when SIGTERM comes, and how long the server took to return after that."""
    config = RouterConfig(
        model_folder,
        hostname="127.0.0.1",
        port=port,
        graceful_termination_timeout=grace_seconds,
        launch_status_path=launch_status_path,
    )
    tokenizer, template, metrics = Tokenizer(num_workers=1), ChatTemplate(), Metrics()
    engine = FakeEngine(tokenizer, [5, 2])
    engine.goes_on = asyncio.Event()
    serving = Serving(config, engine, tokenizer, template, Validation(tokenizer, config), metrics)
    server = asyncio.create_task(run_until_signal(serving, Startup(config, engine, tokenizer, template)))
    await until(lambda: "start" in engine.calls)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        request = asyncio.create_task(session.post("/generate", json={"inputs": "a"}))
        while not engine.streams:
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        start_seconds = time.monotonic()
        asyncio.get_running_loop().call_later(finish_after, engine.goes_on.set)
        await asyncio.sleep(0.1)
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get("/health")  # on a connection of its own: the request still holds the other one
        answers = await asyncio.gather(request, return_exceptions=True)
        await asyncio.wait_for(server, 10)
    tokenizer.close()
    assert engine.calls[-1] == "stop" and engine.streams[0].num_cancels == 1
    return answers[0], time.monotonic() - start_seconds


async def test_a_running_request_finishes_after_sigterm_while_new_ones_are_not_accepted(model_folder, port):
    answer, seconds = await stopped_while_running(model_folder, port, grace_seconds=5, finish_after=0.5)
    assert answer.status == 200 and seconds < 2


async def test_a_request_may_use_most_of_the_grace(model_folder, port):
    answer, _ = await stopped_while_running(model_folder, port, grace_seconds=1, finish_after=0.8)
    assert answer.status == 200


async def test_a_request_that_outlasts_the_grace_is_told_so(model_folder, port):
    answer, seconds = await stopped_while_running(model_folder, port, grace_seconds=0.5, finish_after=60)
    assert answer.status == 424 and 0.4 < seconds < 1.5


async def test_nobody_waits_for_shards_that_the_launcher_has_given_up(model_folder, port, tmp_path):
    path = tmp_path / "status"
    path.write_text(json.dumps({"stage": "giving up", "model_path": model_folder, "is_over": True}))
    answer, seconds = await stopped_while_running(model_folder, port, 60, finish_after=60, launch_status_path=str(path))
    assert answer.status == 424 and seconds < 2

"""Startup with a FakeEngine: what is waited for, what /health would say of it, and what ends it."""

import asyncio
import contextlib
import json
import pathlib
from collections.abc import AsyncIterator

import pytest

import tiny_tokenizers
from fake_engine import MODEL, FakeEngine
from fakes import until
from text_generation_router.chat_template import ChatTemplate
from text_generation_router.config import RouterConfig
from text_generation_router.errors import ConfigurationError
from text_generation_router.startup import POLL_SECONDS, Startup
from text_generation_router.tokenizer import Tokenizer

MESSAGES = [{"role": "user", "content": "Hi"}]


class WatchedTokenizer(Tokenizer):
    """Remembers what /health said while it was loaded, and whether the engine ran."""

    engine: FakeEngine
    status: str | None = None
    calls: tuple[str, ...] = ()

    def load(self, folder: pathlib.Path) -> None:
        self.status, self.calls = self.engine.status, tuple(self.engine.calls)
        super().load(folder)


@pytest.fixture
def tokenizer():
    tokenizer = WatchedTokenizer(num_workers=1)
    yield tokenizer
    tokenizer.close()


@pytest.fixture
def engine(tokenizer):
    engine = FakeEngine(tokenizer, [5])
    engine.model, engine.limits, engine.status = None, None, "waiting for shards"
    tokenizer.engine = engine
    return engine


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    tiny_tokenizers.save(tiny_tokenizers.byte_level(), folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}!"}))
    return folder


@contextlib.asynccontextmanager
async def running(startup: Startup) -> AsyncIterator["asyncio.Task[None]"]:
    task = asyncio.create_task(startup.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_known_folder_is_loaded_and_then_the_engine_starts(engine, tokenizer, folder):
    template = ChatTemplate()
    config = RouterConfig(str(folder))
    async with running(Startup(config, engine, tokenizer, template)) as task:
        await until(lambda: engine.calls)
        assert (tokenizer.status, tokenizer.calls) == ("loading the tokenizer", ())
        assert (engine.status, engine.calls) == ("waiting for shards", ["start"])
        assert tokenizer.token_text(2) == "</s>" and template.render(MESSAGES) == "Hi!"
        assert not task.done()


async def test_a_template_config_that_was_given_is_the_one_that_is_used(engine, tokenizer, folder, tmp_path):
    other, template = tmp_path / "other.json", ChatTemplate()
    other.write_text(json.dumps({"chat_template": "{{ messages[0].content }}?"}))
    async with running(Startup(RouterConfig(str(folder), None, str(other)), engine, tokenizer, template)):
        await until(lambda: engine.calls)
        assert template.render(MESSAGES) == "Hi?"


async def test_the_status_is_the_launchers_until_the_shards_answer(engine, tokenizer, folder, tmp_path):
    path = tmp_path / "status"
    config = RouterConfig(launch_status_path=str(path))
    async with running(Startup(config, engine, tokenizer, ChatTemplate())) as task:
        await asyncio.sleep(1.5 * POLL_SECONDS)
        assert engine.status == "waiting for shards" and not engine.calls and not task.done()
        path.write_text(json.dumps({"stage": "downloading the model", "model_path": None}))
        await until(lambda: engine.status == "downloading the model")
        assert tokenizer.status is None and not engine.calls
        path.write_text(json.dumps({"stage": "starting the shards", "model_path": str(folder)}))
        await until(lambda: engine.calls == ["start"])
        assert tokenizer.token_text(2) == "</s>"
        await until(lambda: engine.status == "starting the shards")
        path.write_text(json.dumps({"stage": "loading the weights", "model_path": str(folder)}))
        await until(lambda: engine.status == "loading the weights")
        engine.model, engine.status = MODEL, "ready"
        path.write_text(json.dumps({"stage": "late news", "model_path": str(folder)}))
        await asyncio.sleep(2.5 * POLL_SECONDS)
        assert engine.status == "ready" and not task.done()


async def test_a_folder_that_was_given_does_not_wait_for_the_launcher(engine, tokenizer, folder, tmp_path):
    config = RouterConfig(str(folder), launch_status_path=str(tmp_path / "status"))
    async with running(Startup(config, engine, tokenizer, ChatTemplate())):
        await until(lambda: engine.calls == ["start"])


async def test_a_missing_tokenizer_ends_it_before_the_engine_starts(engine, tokenizer, tmp_path):
    with pytest.raises(ConfigurationError, match=r"no tokenizer\.json"):
        await Startup(RouterConfig(str(tmp_path)), engine, tokenizer, ChatTemplate()).run()
    assert engine.calls == []


async def test_a_template_that_is_none_ends_it(engine, tokenizer, folder):
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ConfigurationError, match="chat template"):
        await Startup(RouterConfig(str(folder)), engine, tokenizer, ChatTemplate()).run()


async def test_a_bug_in_the_engine_ends_it(engine, tokenizer, folder):
    async def failing() -> None:
        raise KeyError("bug")

    engine.wait_failed = failing
    with pytest.raises(KeyError, match="bug"):
        async with asyncio.timeout(10):
            await Startup(RouterConfig(str(folder)), engine, tokenizer, ChatTemplate()).run()

"""Startup: from an open port to an engine that runs: the model's folder, its tokenizer and template, the shards.

In: the configuration and what is to be filled. Out: an engine at work, and on the way a status for /health that says what
is waited for. Knows nothing of HTTP.
"""

import asyncio
import gc
import pathlib

from text_generation_router.chat_template import ChatTemplate
from text_generation_router.config import RouterConfig
from text_generation_router.engine import Engine
from text_generation_router.launch_status import LaunchStatus
from text_generation_router.tokenizer import Tokenizer

POLL_SECONDS = 0.1


class Startup:
    def __init__(self, config: RouterConfig, engine: Engine, tokenizer: Tokenizer, chat_template: ChatTemplate) -> None:
        self._config = config
        self._engine = engine
        self._tokenizer = tokenizer
        self._chat_template = chat_template

    async def run(self) -> None:
        """Never returns.

        Raises:
            ConfigurationError: a file of the model cannot be used.
            Exception: what ended the engine's loop, which would be a bug.
        """
        folder = await self._folder()
        self._engine.status = "loading the tokenizer"
        await asyncio.to_thread(self._load, folder)
        self._engine.status = "waiting for shards"
        await self._engine.start()
        gc.collect()
        gc.freeze()  # what is here by now stays: no collection in the middle of an answer has to look through it
        await asyncio.gather(self._engine.wait_failed(), self._follow_launch())

    def grace_seconds(self) -> float:
        """For what runs when the server is to stop: none where the launcher has given up shards that died."""
        path = self._config.launch_status_path
        status = LaunchStatus.read(path) if path else None
        return 0.0 if status and status.is_over else self._config.graceful_termination_timeout

    def _load(self, folder: pathlib.Path) -> None:
        config_path = self._config.tokenizer_config_path
        self._tokenizer.load(folder)
        self._chat_template.load(folder, pathlib.Path(config_path) if config_path else None)

    async def _folder(self) -> pathlib.Path:
        if self._config.tokenizer_path is not None:
            return pathlib.Path(self._config.tokenizer_path)
        while (folder := self._read_launch()) is None:
            await asyncio.sleep(POLL_SECONDS)
        return folder

    async def _follow_launch(self) -> None:
        while self._engine.model is None:
            self._read_launch()
            await asyncio.sleep(POLL_SECONDS)

    def _read_launch(self) -> pathlib.Path | None:
        """Passes the launcher's stage on, as long as the shards have never answered. Returns the folder, if it is known."""
        path = self._config.launch_status_path
        status = LaunchStatus.read(path) if path else None
        if status and self._engine.model is None:
            self._engine.status = status.stage
        return status.model_path if status else None

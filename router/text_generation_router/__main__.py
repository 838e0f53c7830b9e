"""text-generation-router: read the command line, serve until told to stop.

In: arguments, environment, SIGTERM or Ctrl-C. Out: an exit code: 0 after finishing what ran, 1 with one line that says
what to change. Knows nothing of requests.
"""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Coroutine
from typing import Any

from aiohttp import web

from text_generation_proto import flags, logs
from text_generation_proto.courtesy import be_courteous
from text_generation_router.api.serving import Serving
from text_generation_router.app import build_app
from text_generation_router.chat_template import ChatTemplate
from text_generation_router.config import RouterConfig
from text_generation_router.engine import Engine
from text_generation_router.errors import ConfigurationError
from text_generation_router.metrics import Metrics
from text_generation_router.startup import Startup
from text_generation_router.tokenizer import Tokenizer
from text_generation_router.validation import Validation

logger = logging.getLogger(__name__)

IDLE_SECONDS = 75.0  # for a connection to say its next request, or its first one
ANSWER_SECONDS = 2.0  # for handlers to write their last words, once the engine has told them


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="text-generation-router",
        description="HTTP server of Text Generation Inference: tokenizes, queues and batches requests, and sends every "
        "step to the shard servers, which must be running or on their way. text-generation-launcher starts them all.",
    )
    config = flags.parse(RouterConfig, parser)
    logs.configure("router", config.json_output)
    be_courteous()
    try:
        asyncio.run(_serve(config))
    except ConfigurationError as error:
        sys.exit(f"Error: {error}")


async def _serve(config: RouterConfig) -> None:
    metrics, tokenizer, chat_template = Metrics(), Tokenizer(config.validation_workers), ChatTemplate()
    engine = Engine(config, tokenizer, metrics)
    validation = Validation(tokenizer, config)
    serving = Serving(config, engine, tokenizer, chat_template, validation, metrics)
    try:
        await run_until_signal(serving, Startup(config, engine, tokenizer, chat_template))
    finally:
        tokenizer.close()


async def run_until_signal(serving: Serving, startup: Startup) -> None:
    """Returns after SIGTERM or SIGINT, when what ran is finished or its grace is over.

    Raises:
        ConfigurationError: the address cannot be listened on, or the model's files cannot be used.
    """
    config, engine = serving.config, serving.engine
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    runner = web.AppRunner(
        build_app(serving),
        access_log=None,
        handler_cancellation=True,  # a gone client cancels its handler, and with that its generation
        shutdown_timeout=ANSWER_SECONDS,
        keepalive_timeout=IDLE_SECONDS,
    )
    await runner.setup()
    try:
        await _listen(runner, config)
        await _first_of(stopping.wait(), startup.run())
        grace_seconds = startup.grace_seconds()
        logger.info("stopping grace_seconds=%g", grace_seconds)
        await asyncio.gather(*(site.stop() for site in runner.sites))
        await engine.stop(grace_seconds)
    finally:
        await engine.stop(grace_seconds=0)
        await runner.cleanup()


async def _first_of(*waits: Coroutine[Any, Any, object]) -> None:
    """Returns with the first that returns, raises what the first that fails raises."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    for task in done:
        task.result()


async def _listen(runner: web.AppRunner, config: RouterConfig) -> None:
    try:
        await web.TCPSite(runner, config.hostname, config.port).start()
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {config.hostname}:{config.port}: {error.strerror}") from error
    logger.info("listening address=http://%s:%d", config.hostname, config.port)


if __name__ == "__main__":
    main()

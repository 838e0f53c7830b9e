"""Service: the shard's gRPC face: Describe, Execute, Generate, health and reflection.

In: messages on a Unix socket. Out: the runner's results, in order. All device work goes to one thread, one step after the
other, so that the event loop answers while a forward runs. One driver at a time may make the shard compute.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from tokenizers import Tokenizer

from text_generation_proto import shard_pb2, shard_pb2_grpc
from text_generation_proto.shard_pb2 import (
    DescribeRequest,
    DescribeResponse,
    GenerateRequest,
    GenerateResponse,
    Step,
    StepResult,
)
from text_generation_server.config import ShardConfig
from text_generation_server.errors import ConfigurationError, ModelError, ShardLost, StepError
from text_generation_server.generation import Generation
from text_generation_server.runner import Runner
from text_generation_server.step_queue import StepQueue

logger = logging.getLogger(__name__)

GRPC_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
STOP_GRACE_SECONDS = 1.0


class ShardService(shard_pb2_grpc.ShardServicer):
    """`lost` is set when the other ranks are gone: a shard alone can do nothing but end."""

    def __init__(self, config: ShardConfig, runner: Runner, device_thread: ThreadPoolExecutor) -> None:
        """`device_thread`: the one that loaded the runner, and nothing else runs on."""
        self.config = config
        self.runner = runner
        self.lost: asyncio.Future[ShardLost] = asyncio.get_running_loop().create_future()
        self._device_thread = device_thread
        self._steps = StepQueue(runner, device_thread)
        self._driver = asyncio.Lock()
        self._tokenizer: Tokenizer | None = None

    async def Describe(self, request: DescribeRequest, context: grpc.aio.ServicerContext) -> DescribeResponse:
        config, runner = self.config, self.runner
        decoding = runner.model.decoding
        return DescribeResponse(
            model_id=config.model_id,
            model_type=runner.folder.model_type,
            dtype=str(runner.dtype).removeprefix("torch."),
            device=runner.device.type,
            quantize=config.quantize or "",
            rank=config.rank,
            world_size=config.world_size,
            shard_urls=[f"unix:{config.shard_uds_path}-{rank}" for rank in range(config.world_size)],
            block_size=runner.block_size,
            num_blocks=runner.num_blocks,
            max_positions=runner.max_positions,
            vocab_size=runner.model.config.vocab_size,
            eos_token_ids=runner.folder.eos_token_ids,
            weight_bytes=runner.model.weight_bytes,
            weight_bytes_read=runner.weight_bytes_read,
            peak_loading_bytes=runner.peak_loading_bytes,
            version=version("text-generation-inference"),
            max_batch_tokens=runner.max_batch_tokens,
            timings=runner.timings,
            chunked_prefill=runner.model.chunked_prefill,
            prefix_cache=runner.model.prefix_cache,
            decoder_start_token_id=decoding.start_token_id if decoding else None,
            max_new_tokens=decoding.max_new_tokens if decoding else None,
        )

    async def Execute(
        self, request_iterator: AsyncIterator[Step], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[StepResult]:
        """Steps are handed to the device thread as they come; their results are awaited in the same order."""
        async with self._driving("Execute", context):
            pending: asyncio.Queue[asyncio.Future[StepResult] | None] = asyncio.Queue()
            reader = asyncio.create_task(self._read(request_iterator, pending))
            try:
                while (future := await pending.get()) is not None:
                    result = await future
                    if self.config.rank == 0 or result.error:
                        yield result
            finally:
                reader.cancel()

    async def Generate(
        self, request: GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[GenerateResponse]:
        async with self._driving("Generate", context):
            try:
                steps = (await asyncio.to_thread(self._generation, request)).steps()
                # Closed before the driver is gone: what is left of the batch must run while its sequences are known.
                async with contextlib.aclosing(self._on_device_thread(steps)) as batches:
                    async for responses in batches:
                        for response in responses if self.config.rank == 0 else ():
                            yield response
            except StepError as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            except ModelError as error:
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))

    @contextlib.asynccontextmanager
    async def _driving(self, call: str, context: grpc.aio.ServicerContext) -> AsyncIterator[None]:
        """Rank 0 decides which client may drive; the others follow, as soon as the one before has gone from them too."""
        if self.config.rank == 0 and self._driver.locked():
            message = "this shard is driven by another client's call; one at a time"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, message)
        async with self._driver:
            logger.info("driver connected call=%s", call)
            await context.send_initial_metadata(())  # tells the client that it may call the other ranks
            try:
                await asyncio.wrap_future(self._device_thread.submit(self.runner.begin))
                yield
            except ShardLost as error:
                self._report_loss(error)
                await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
            finally:
                self._device_thread.submit(self.runner.reset)
                logger.info("driver gone call=%s", call)

    async def _read(
        self, steps: AsyncIterator[Step], pending: asyncio.Queue[asyncio.Future[StepResult] | None]
    ) -> None:
        try:
            async for step in steps:
                pending.put_nowait(asyncio.wrap_future(self._steps.put(step)))
        finally:
            pending.put_nowait(None)

    async def _on_device_thread(self, steps: Iterator[list[GenerateResponse]]) -> AsyncGenerator[list[GenerateResponse], None]:
        """A client that goes away must not stop one rank earlier than another: with several, the batch runs to its end."""
        loop = asyncio.get_running_loop()
        try:
            while (responses := await loop.run_in_executor(self._device_thread, next, steps, None)) is not None:
                yield responses
        finally:
            if self.config.world_size > 1:
                self._device_thread.submit(lambda: [None for _ in steps])

    def _generation(self, request: GenerateRequest) -> Generation:
        self._tokenizer = self._tokenizer or self._load_tokenizer()
        return Generation(request, self.runner, self._tokenizer)

    def _load_tokenizer(self) -> Tokenizer:
        path = self.runner.folder.path / "tokenizer.json"
        if not path.exists():
            raise ModelError(f"Generate needs {path}, which is not there")
        try:
            tokenizer = Tokenizer.from_file(str(path))
            tokenizer.no_truncation()  # saved settings of training: they would cut a prompt, or fill it up
            tokenizer.no_padding()
            return tokenizer
        except Exception as error:  # the library raises nothing more special
            raise ModelError(f"{path} cannot be read as a tokenizer: {error}") from error

    def _report_loss(self, error: ShardLost) -> None:
        if not self.lost.done():
            self.lost.set_result(error)


async def serve(config: ShardConfig, runner: Runner, device_thread: ThreadPoolExecutor) -> int:
    """Listens until SIGTERM or SIGINT (→ 0) or until the other ranks are lost (→ 1). Leaves no socket file."""
    _check_socket_is_free(config.socket_path)
    stopped = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stopped.set)
    service = ShardService(config, runner, device_thread)
    server = await _start_server(config, service)
    logger.info("listening socket=%s", config.socket_path)
    service.lost.add_done_callback(lambda _: stopped.set())
    try:
        await stopped.wait()
        await server.stop(STOP_GRACE_SECONDS)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(config.socket_path)
    if service.lost.done():
        logger.error("Error: %s", service.lost.result())
    return 1 if service.lost.done() else 0


async def _start_server(config: ShardConfig, service: ShardService) -> grpc.aio.Server:
    server = grpc.aio.server(options=GRPC_OPTIONS)
    name = shard_pb2.DESCRIPTOR.services_by_name["Shard"].full_name
    health = HealthServicer()
    for service_name in ("", name):
        await health.set(service_name, health_pb2.HealthCheckResponse.SERVING)
    shard_pb2_grpc.add_ShardServicer_to_server(service, server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    reflection.enable_server_reflection((name, health_name, reflection.SERVICE_NAME), server)
    try:
        server.add_insecure_port(f"unix:{config.socket_path}")
    except RuntimeError as error:
        raise ConfigurationError(f"cannot listen on {config.socket_path}: no such folder, or a path too long") from error
    await server.start()
    return server


def _check_socket_is_free(path: str) -> None:
    """A socket file left behind is replaced; one that somebody listens on belongs to another server.

    Raises:
        ConfigurationError: it does.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return
    raise ConfigurationError(f"another shard listens on {path}; give this one another --shard-uds-path")

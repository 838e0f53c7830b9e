"""A shard that answers every step at once with one and the same token: what is left of the server is the router.

In: the path of a socket, a token id. Out: the step protocol over that socket, until it is killed. It checks nothing and knows
no tensors; the one that is strict is in tests/fakes.py.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator

import grpc

from text_generation_proto import shard_pb2, shard_pb2_grpc

BLOCK_SIZE = 16
NUM_BLOCKS = 8192
MAX_POSITIONS = 2048
MAX_BATCH_TOKENS = 4096
LOGPROB = -1.2345678


class ScriptedShard(shard_pb2_grpc.ShardServicer):
    def __init__(self, url: str, token_id: int) -> None:
        self._url = url
        self._token_id = token_id

    async def Describe(
        self, request: shard_pb2.DescribeRequest, context: grpc.aio.ServicerContext
    ) -> shard_pb2.DescribeResponse:
        return shard_pb2.DescribeResponse(
            model_id="scripted",
            model_type="bloom",
            dtype="float32",
            device="cpu",
            world_size=1,
            shard_urls=[self._url],
            block_size=BLOCK_SIZE,
            num_blocks=NUM_BLOCKS,
            max_positions=MAX_POSITIONS,
            vocab_size=1 << 20,
            max_batch_tokens=MAX_BATCH_TOKENS,
        )

    async def Execute(
        self, request_iterator: AsyncIterator[shard_pb2.Step], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[shard_pb2.StepResult]:
        await context.send_initial_metadata(())  # says to the router that it may drive this shard
        async for step in request_iterator:
            yield self._result(step)

    def _result(self, step: shard_pb2.Step) -> shard_pb2.StepResult:
        result = shard_pb2.StepResult(id=step.id)
        for work in step.work:
            if work.sample:
                result.tokens.add(sequence_id=work.sequence_id, token_id=self._token_id, logprob=LOGPROB)
        return result


async def serve(uds_path: str, token_id: int) -> None:
    server, url = grpc.aio.server(), f"unix:{uds_path}-0"
    shard_pb2_grpc.add_ShardServicer_to_server(ScriptedShard(url, token_id), server)
    server.add_insecure_port(url)
    await server.start()
    await server.wait_for_termination()


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer every step of a router at once, with the same token each time.")
    parser.add_argument("--shard-uds-path", required=True, help="prefix of the socket, as the router is told it")
    parser.add_argument("--token-id", type=int, required=True, help="what every sequence goes on with")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.shard_uds_path, arguments.token_id))


if __name__ == "__main__":
    main()

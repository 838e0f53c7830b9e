"""Shards over their sockets, as clients without a router meet them: one rank, and two ranks of a larger model."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from reference import Reference, compare
from tokenizers import Tokenizer

from runner_steps import make_step
from shard_processes import ShardProcesses
from text_generation_proto.shard_pb2 import (
    DescribeRequest,
    DescribeResponse,
    GenerateRequest,
    GenerateResponse,
    SamplingParameters,
)
from text_generation_proto.shard_pb2_grpc import ShardStub
from text_generation_router.shards import ShardGroup, ShardsLost
from tiny_models import save_random_bloom

INPUTS = ["Once upon a time", "a", "The quick brown fox jumps over the lazy dog, again and again."]
SERVICE = "text_generation.v1.Shard"


@pytest.fixture(scope="module")
def one_rank(shard_processes: ShardProcesses, random_bloom: Path) -> str:
    """Socket prefix of a shard that holds the whole random model."""
    arguments = ["--dtype", "float32", "--kv-cache-gib", "0.05", "--max-batch-tokens", "64"]
    return shard_processes.start(random_bloom, 1, *arguments)


@pytest.fixture(scope="module")
def large_bloom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """126 MB of float32, nearly all of it in matrices that are split."""
    folder = tmp_path_factory.mktemp("large-bloom")
    return save_random_bloom(folder, num_heads=8, num_layers=10, head_dim=64, initializer_range=0.05)


@pytest.fixture(scope="module")
def two_ranks(shard_processes: ShardProcesses, large_bloom: Path) -> str:
    return shard_processes.start(large_bloom, 2, "--dtype", "float32", "--kv-cache-gib", "0.05")


@contextlib.asynccontextmanager
async def connected(uds_path: str, rank: int = 0) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"unix:{uds_path}-{rank}") as channel:
        yield channel


@contextlib.asynccontextmanager
async def connected_group(uds_path: str) -> AsyncIterator[ShardGroup]:
    group = await ShardGroup.connect(uds_path)
    try:
        yield group
    finally:
        await group.close()


async def describe(uds_path: str, rank: int = 0) -> DescribeResponse:
    async with connected(uds_path, rank) as channel:
        return await ShardStub(channel).Describe(DescribeRequest())


def by_input(responses: list[GenerateResponse]) -> list[list[GenerateResponse]]:
    count = max(response.index for response in responses) + 1
    return [[response for response in responses if response.index == index] for index in range(count)]


async def generate(uds_path: str, **request: Any) -> list[list[GenerateResponse]]:
    """The responses of each input, once the shard has let go of whoever drove it before."""
    async with connected(uds_path) as channel, asyncio.timeout(20):
        while True:
            try:
                return by_input([r async for r in ShardStub(channel).Generate(GenerateRequest(**request))])
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.FAILED_PRECONDITION:
                    raise
            await asyncio.sleep(0.01)


async def refusal(uds_path: str, **request: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await generate(uds_path, **request)
    return caught.value.code(), caught.value.details()


def assert_truth(model: Path, inputs: list[str], rows: list[list[GenerateResponse]], max_new_tokens: int) -> None:
    reference, tokenizer = Reference(model), Tokenizer.from_file(str(model / "tokenizer.json"))
    assert len(rows) == len(inputs)
    for text, row in zip(inputs, rows, strict=True):
        answer = reference.generate(tokenizer.encode(text).ids, max_new_tokens)
        compare(answer, [response.token_id for response in row], [response.logprob for response in row])
        assert row[-1].generated_text == tokenizer.decode([response.token_id for response in row])


async def test_a_shard_describes_what_it_serves(one_rank: str, random_bloom: Path) -> None:
    found = await describe(one_rank)
    assert (found.model_id, found.model_type) == (str(random_bloom), "bloom")
    assert (found.dtype, found.quantize, found.rank, found.world_size) == ("float32", "", 0, 1)
    assert list(found.shard_urls) == [f"unix:{one_rank}-0"]
    assert (found.block_size, found.max_batch_tokens, found.vocab_size) == (16, 64, 300)
    assert list(found.eos_token_ids) == [2]
    assert found.num_blocks == int(0.05 * 2**30) // (2 * 3 * 16 * 64 * 4)  # keys and values, 3 layers of 64 floats
    assert found.max_positions > 0 and found.version


async def test_health_serves_and_reflection_lists_the_service(one_rank: str) -> None:
    async with connected(one_rank) as channel:
        for service in ("", SERVICE):
            check = health_pb2.HealthCheckRequest(service=service)
            status = await health_pb2_grpc.HealthStub(channel).Check(check)
            assert status.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
        [response] = [response async for response in call]
        names = {service.name for service in response.list_services_response.service}
        assert names == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


async def test_one_rank_generates_what_transformers_does(one_rank: str, random_bloom: Path) -> None:
    rows = await generate(one_rank, inputs=INPUTS, max_new_tokens=30)
    assert_truth(random_bloom, INPUTS, rows, 30)
    assert {row[-1].finish_reason for row in rows} <= {"length", "eos_token"}


async def test_two_ranks_generate_what_transformers_does(two_ranks: str, large_bloom: Path) -> None:
    async with connected_group(two_ranks) as group:
        request = GenerateRequest(inputs=INPUTS, max_new_tokens=20)
        rows = by_input([response async for response in group.generate(request)])
    assert_truth(large_bloom, INPUTS, rows, 20)


async def test_two_ranks_sample_by_the_seed(two_ranks: str) -> None:
    async with connected_group(two_ranks) as group:
        texts = []
        for seed in (1, 1, 2):
            sampling = SamplingParameters(do_sample=True, temperature=20.0, top_p=0.99, seed=seed)
            request = GenerateRequest(inputs=INPUTS, max_new_tokens=8, sampling=sampling)
            texts.append([response.token_id async for response in group.generate(request)])
    assert texts[0] == texts[1] != texts[2]


async def test_rows_end_by_length_by_end_of_sequence_and_by_stop_sequence(one_rank: str) -> None:
    [[*_, whole]] = await generate(one_rank, inputs=["Hello"], max_new_tokens=30)
    assert whole.finish_reason == "length"
    text = whole.generated_text
    stop = next(text[i : i + 2] for i in range(5, len(text)) if "\ufffd" not in text[i : i + 2])
    [[*_, stopped]] = await generate(one_rank, inputs=["Hello"], max_new_tokens=30, stop=[stop])
    assert (stopped.finish_reason, stopped.generated_text) == ("stop_sequence", text[: text.index(stop) + 2])
    certain_end = SamplingParameters(repetition_penalty=1e-3)
    [[ended]] = await generate(one_rank, inputs=["</s>"], max_new_tokens=30, sampling=certain_end)
    assert (ended.token_id, ended.finish_reason) == (2, "eos_token")


async def test_a_bad_request_is_an_invalid_argument_and_the_next_one_works(one_rank: str) -> None:
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    assert await refusal(one_rank, inputs=[]) == (invalid, "inputs cannot be empty")
    assert await refusal(one_rank, inputs=["a", ""]) == (invalid, "inputs cannot be empty")
    code, message = await refusal(one_rank, inputs=["a"], max_new_tokens=10**6)
    assert code == invalid and "the model has 2048 positions" in message
    code, message = await refusal(one_rank, inputs=["a"], sampling=SamplingParameters(temperature=math.nan))
    assert code == invalid and "strictly positive" in message
    assert len(await generate(one_rank, inputs=["a"], max_new_tokens=2)) == 1


async def test_a_bad_request_to_two_ranks_is_refused_and_the_next_one_works(two_ranks: str) -> None:
    async with connected_group(two_ranks) as group:
        with pytest.raises(ShardsLost, match="inputs cannot be empty"):
            [response async for response in group.generate(GenerateRequest(inputs=[""]))]
        request = GenerateRequest(inputs=["a"], max_new_tokens=2)
        assert len([response async for response in group.generate(request)]) == 2


async def test_steps_are_answered_in_order_and_a_failed_one_does_not_end_the_stream(one_rank: str) -> None:
    [row] = await generate(one_rank, inputs=["AB"], max_new_tokens=3)
    prompt = [36, 37]  # the tokenizer's ids of "A" and "B"
    steps = [
        make_step(5, add={0: prompt}, work=[(0, 0, 2)]),
        make_step(6, work=[(0, 2, 1)]),
        make_step(7, work=[(9, 0, 1)]),
        make_step(8, work=[(0, 3, 1)]),
        make_step(9, drop=[0]),
    ]
    async with connected(one_rank) as channel:
        call = ShardStub(channel).Execute()
        for step in steps:
            await call.write(step)
        await call.done_writing()
        results = [result async for result in call]
    assert [result.id for result in results] == [5, 6, 7, 8, 9]
    assert [bool(result.error) for result in results] == [False, False, True, False, False]
    tokens = [token.token_id for result in results for token in result.tokens]
    assert tokens == [response.token_id for response in row]


async def test_a_second_driver_is_refused_while_the_first_is_connected(one_rank: str) -> None:
    async with connected(one_rank) as channel, connected(one_rank) as other:
        first = ShardStub(channel).Execute()
        await first.write(make_step(1))
        assert (await first.read()).id == 1
        for call in (ShardStub(other).Generate(GenerateRequest(inputs=["a"])), ShardStub(other).Execute()):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
            assert "driven by another client's call" in str(caught.value.details())
        assert (await describe(one_rank)).rank == 0
        await first.write(make_step(2))
        assert (await first.read()).id == 2
        await first.done_writing()
    assert len(await generate(one_rank, inputs=["a"], max_new_tokens=1)) == 1


async def test_a_client_that_goes_away_frees_the_shard(one_rank: str) -> None:
    expected = await generate(one_rank, inputs=["a"], max_new_tokens=3)
    steps_before = (await describe(one_rank)).timings.num_steps
    async with connected(one_rank) as channel:
        call = ShardStub(channel).Generate(GenerateRequest(inputs=["abc"], max_new_tokens=2_000))
        await call.read()
        call.cancel()
    async with connected(one_rank) as channel:
        call = ShardStub(channel).Execute()
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call.write(make_step(1, add={0: [5]}, work=[(0, 0, 1)]))
            await call.read()
        call.cancel()
    assert await generate(one_rank, inputs=["a"], max_new_tokens=3) == expected
    assert (await describe(one_rank)).timings.num_steps - steps_before < 1_000, "nobody waits for the rest"


async def test_a_client_of_two_ranks_that_goes_away_leaves_them_in_step(two_ranks: str) -> None:
    async with connected_group(two_ranks) as group:
        request = GenerateRequest(inputs=["abc"], max_new_tokens=4)
        expected = [response.token_id async for response in group.generate(request)]
        for num_read in (1, 2, 5):
            responses = group.generate(GenerateRequest(inputs=["gone", "away"], max_new_tokens=25))
            for _ in range(num_read):
                await anext(responses)
            await responses.aclose()
            await asyncio.sleep(0.3)  # until both ranks have seen that the client is gone
            async with asyncio.timeout(20):
                assert [response.token_id async for response in group.generate(request)] == expected


async def test_each_of_two_ranks_reads_half_of_the_weights(two_ranks: str, large_bloom: Path) -> None:
    whole = (large_bloom / "model.safetensors").stat().st_size
    for rank in range(2):
        found = await describe(two_ranks, rank)
        assert (found.rank, found.world_size) == (rank, 2)
        assert list(found.shard_urls) == [f"unix:{two_ranks}-0", f"unix:{two_ranks}-1"]
        assert 0.49 < found.weight_bytes_read / whole < 0.52
        assert 0.49 < found.weight_bytes / whole < 0.51


async def test_a_rank_holds_little_more_than_its_share_while_it_loads(two_ranks: str) -> None:
    """Its share is what its slices of the matrices occupy, weight_bytes."""
    for rank in range(2):
        found = await describe(two_ranks, rank)
        assert 0.9 * found.weight_bytes < found.peak_loading_bytes < 1.3 * found.weight_bytes

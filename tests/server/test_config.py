"""What one rank can be told, on the command line and by the environment, and what it refuses."""

import argparse
import dataclasses

import pytest

from text_generation_proto import flags
from text_generation_server.config import ShardConfig


def parse(*argv: str) -> ShardConfig:
    return flags.parse(ShardConfig, argparse.ArgumentParser(), argv)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in dataclasses.fields(ShardConfig):
        monkeypatch.delenv(flags.env_name(field), raising=False)


def test_a_model_is_enough() -> None:
    config = parse("models/tiny-bloom")
    assert config == ShardConfig("models/tiny-bloom")
    assert (config.rank, config.world_size, config.quantize, config.dtype) == (0, 1, None, None)


def test_the_environment_of_torch_distributed_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node", "MASTER_PORT": "1234"}.items():
        monkeypatch.setenv(name, value)
    config = parse("m", "--rank", "2")
    assert (config.rank, config.world_size, config.master_addr, config.master_port) == (2, 4, "node", 1234)


def test_a_config_survives_the_way_through_a_command_line() -> None:
    config = ShardConfig(
        "m", "r", quantize="bitsandbytes-nf4", dtype="bfloat16", kv_cache_gib=0.5, rank=1, world_size=2, json_output=True
    )
    assert parse(*flags.to_argv(config)) == config


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "model_id is required"),
        (["m", "--rank", "2", "--world-size", "2"], "`rank` must be in [0, 2). Given: 2"),
        (["m", "--world-size", "0"], "`world_size` cannot be < 1. Given: 0"),
        (["m", "--block-size", "0"], "`block_size` must be > 0. Given: 0"),
        (["m", "--kv-cache-gib", "-1"], "`kv_cache_gib` must be > 0. Given: -1.0"),
        (["m", "--max-batch-tokens", "0"], "`max_batch_tokens` must be > 0. Given: 0"),
        (["m", "--num-threads", "-2"], "`num_threads` must be > 0. Given: -2"),
        (["m", "--quantize", "gptq"], "invalid choice: 'gptq'"),
        (["m", "--dtype", "int3"], "invalid choice: 'int3'"),
        (["m", "--kv-cache-dtype", "fp8_e5m2"], "invalid choice: 'fp8_e5m2'"),
    ],
)
def test_what_does_not_fit_is_a_usage_error(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*argv)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_no_step_is_recorded_where_the_number_of_sequences_is_0() -> None:
    assert parse("m").decode_sizes
    assert parse("m", "--cuda-graphs", "0").decode_sizes == []


def test_the_socket_is_named_by_prefix_and_rank() -> None:
    assert ShardConfig("m", shard_uds_path="/tmp/x", rank=3, world_size=4).socket_path == "/tmp/x-3"

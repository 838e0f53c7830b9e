"""One command line in, the command lines of the children out."""

import argparse
import dataclasses
from pathlib import Path

import pytest

from text_generation_launcher.config import LauncherConfig
from text_generation_launcher.launch import Commands
from text_generation_proto.flags import parse, secrets_to_environment, to_argv
from text_generation_router.config import RouterConfig
from text_generation_server.config import ShardConfig

MODEL = Path("/models/m")
CHOSEN = [
    *("--model-id", "some/model", "--revision", "v1", "--quantize", "bitsandbytes-nf4", "--dtype", "bfloat16"),
    *("-p", "8080", "--hostname", "127.0.0.1", "--max-concurrent-requests", "7", "--max-input-tokens", "100"),
    *("--max-total-tokens", "200", "--max-batch-prefill-tokens", "64", "--max-stop-sequences", "2"),
    *("--validation-workers", "3", "--no-prefix-caching", "--block-size", "32", "--kv-cache-gib", "0.5"),
    *("--kv-cache-dtype", "fp8_e4m3fn", "--cuda-graphs", "1,4"),
    *("--num-threads", "1", "--shard-uds-path", "/run/x", "--master-addr", "10.0.0.1", "--master-port", "29600"),
    *("--collective-timeout-seconds", "6", "-g", "7", "--json-output", "--max-batch-size", "9", "--max-best-of", "3"),
    *("--speculate", "4"),
    *("--max-top-n-tokens", "20", "--max-client-batch-size", "8", "--payload-limit", "1000"),
    *("--cors-allow-origin", "https://a.example", "--cors-allow-origin", "https://b.example"),
    *("--tokenizer-config-path", "/models/chat.json", "--cuda-memory-fraction", "0.5"),
    *("--watermark-gamma", "0.25", "--watermark-delta", "-1.5", "--trust-remote-code"),
]
SECRET = "sk-1234"


def launcher_config(*argv: str) -> LauncherConfig:
    return parse(LauncherConfig, argparse.ArgumentParser(), argv)


def test_what_is_chosen_reaches_every_shard_through_its_command_line() -> None:
    shard = launcher_config(*CHOSEN).shard_config(1, 2, MODEL)
    assert parse(ShardConfig, argparse.ArgumentParser(), to_argv(shard)) == shard
    assert (shard.model_id, shard.rank, shard.world_size) == (str(MODEL), 1, 2)
    assert (shard.master_addr, shard.master_port, shard.max_batch_tokens) == ("10.0.0.1", 29600, 64)
    assert shard.trust_remote_code
    assert (shard.kv_cache_dtype, shard.decode_sizes) == ("fp8_e4m3fn", [1, 4])
    assert (shard.cuda_memory_fraction, shard.watermark_gamma, shard.watermark_delta) == (0.5, 0.25, -1.5)


def test_what_is_chosen_reaches_the_router_through_its_command_line() -> None:
    router = launcher_config(*CHOSEN).router_config()
    assert parse(RouterConfig, argparse.ArgumentParser(), to_argv(router)) == router
    assert (router.tokenizer_path, router.model_id, router.port) == (None, "some/model", 8080)
    assert router.launch_status_path == "/run/x-status"
    assert (router.max_input_tokens, router.prefix_caching, router.graceful_termination_timeout) == (100, False, 7.0)
    assert (router.max_batch_size, router.max_best_of, router.max_top_n_tokens) == (9, 3, 20)
    assert router.speculate == 4
    assert (router.max_client_batch_size, router.payload_limit) == (8, 1000)
    assert router.cors_allow_origin == ("https://a.example", "https://b.example")
    assert router.tokenizer_config_path == "/models/chat.json"


@pytest.mark.parametrize("owner", [RouterConfig, ShardConfig])
def test_every_flag_of_a_child_is_a_flag_here_or_worked_out(owner: type) -> None:
    worked_out = {"tokenizer_path", "launch_status_path", "rank", "world_size", "max_batch_tokens"}
    mine = {field.name: field for field in dataclasses.fields(LauncherConfig)}
    for field in dataclasses.fields(owner):
        assert field.name in worked_out or field.name in mine
        if field.name in mine and field.name != "model_id":
            assert mine[field.name].default == field.default


def test_the_old_name_of_max_input_tokens_still_works() -> None:
    assert launcher_config("--max-input-length", "9").router_config().max_input_tokens == 9


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--sharded", "--num-shard", "1"], "`sharded` is true but `num_shard` <= 1"),
        (["--num-shard", "0"], "`num_shard` cannot be < 1"),
        (["--max-input-tokens", "5", "--max-input-length", "5"], "Both `max_input_tokens` (5)"),
        (["--max-input-tokens", "5", "--max-total-tokens", "5"], "must be < `max_total_tokens`"),
        (["--max-input-length", "5", "--max-total-tokens", "5"], "must be < `max_total_tokens`"),
        (["--validation-workers", "0"], "`validation_workers` must be > 0"),
        (["--block-size", "0"], "`block_size` must be > 0"),
        (["--port", "0"], "`port` must be between"),
        (["--cuda-graphs", "1,two"], "`cuda_graphs` must be numbers"),
        (["--cuda-memory-fraction", "1.5"], "`cuda_memory_fraction` must be"),
        (["--payload-limit", "0"], "`payload_limit` must be > 0"),
        (["--api-key", ""], "--api-key: a value is empty"),
        (["--max-best", "1"], "--max-best"),
        (["--max-restarts", "-1"], "`max_restarts` cannot be < 0"),
        (["--quantize", "gptq"], "invalid choice"),
        (["--num-shard", "two"], "--num-shard"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        launcher_config(*argv)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("argv", "num_gpus", "world_size"),
    [
        ([], 0, 1),
        ([], 8, 8),
        (["--num-shard", "2"], 0, 2),
        (["--num-shard", "2"], 8, 2),
        (["--sharded"], 4, 4),
        (["--sharded", "false"], 4, 1),
    ],
)
def test_the_number_of_shards_follows_flags_then_gpus(argv: list[str], num_gpus: int, world_size: int) -> None:
    assert launcher_config(*argv).world_size(num_gpus) == world_size


@pytest.mark.parametrize(("argv", "num_gpus"), [(["--sharded"], 1), (["--sharded"], 0), (["--num-shard", "3"], 2)])
def test_too_few_gpus_are_said(argv: list[str], num_gpus: int) -> None:
    with pytest.raises(ValueError, match=f"not enough cuda devices: .* only found {num_gpus} CUDA devices"):
        launcher_config(*argv).world_size(num_gpus)


def test_a_flag_that_equals_the_default_wins_over_the_environment_in_the_children_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PORT", "8080")
    config = launcher_config("--port", "3000")
    environment = config.child_environment({"PORT": "8080", "RANK": "3", "PATH": "/bin"})
    assert config.port == 3000
    assert environment == {"PATH": "/bin", "PYTHONUNBUFFERED": "1"}


def test_the_download_folder_reaches_the_hub_library() -> None:
    config = launcher_config("--huggingface-hub-cache", "/data")
    assert config.child_environment({})["HF_HUB_CACHE"] == "/data"


@pytest.mark.parametrize(
    ("given", "token"),
    [
        ({"HF_API_TOKEN": "old"}, "old"),
        ({"HF_API_TOKEN": "old", "HF_TOKEN": ""}, "old"),
        ({"HF_API_TOKEN": "old", "HF_TOKEN": "new"}, "new"),
        ({"HF_API_TOKEN": ""}, None),
    ],
)
def test_the_old_name_of_the_hubs_token_still_works(given: dict[str, str], token: str | None) -> None:
    assert launcher_config().child_environment(given).get("HF_TOKEN") == token


def test_the_name_of_the_machine_is_not_the_address_to_listen_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSTNAME", "pod-7f9c")  # containers have it
    assert launcher_config().router_config().hostname == "0.0.0.0"


def test_api_keys_reach_the_router_alone_and_no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", SECRET)
    config = launcher_config()
    router, shard = config.router_config(), config.shard_config(0, 1, MODEL)
    assert secrets_to_environment(router) == {"API_KEY": SECRET}
    assert secrets_to_environment(shard) == {}
    assert "API_KEY" not in config.child_environment({"API_KEY": SECRET})
    assert SECRET not in " ".join([*Commands().router(router), *Commands().shard(shard)])


def test_api_keys_are_not_shown_with_the_configs_that_have_them() -> None:
    config = launcher_config("--api-key", SECRET, "--api-key", f"{SECRET}-2")
    assert config.router_config().api_key == (SECRET, f"{SECRET}-2")
    assert SECRET not in f"{config!r} {config.router_config()!r}"

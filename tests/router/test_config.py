import argparse
import dataclasses

import pytest

from text_generation_proto.flags import env_name, parse, secrets_to_environment, to_argv
from text_generation_router.config import RouterConfig

FIELDS = dataclasses.fields(RouterConfig)


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in FIELDS:
        monkeypatch.delenv(env_name(field), raising=False)


def read(*argv: str) -> RouterConfig:
    return parse(RouterConfig, argparse.ArgumentParser("text-generation-router"), argv)


def test_a_tokenizer_is_all_that_must_be_given():
    config = read("--tokenizer-path", "/models/m")
    assert config == RouterConfig("/models/m")
    assert (config.port, config.hostname, config.max_concurrent_requests) == (3000, "0.0.0.0", 128)
    assert config.prefix_caching and not config.json_output
    assert config.max_input_tokens is config.max_total_tokens is config.max_batch_prefill_tokens is None


def test_without_a_tokenizer_one_line_says_so(capsys):
    with pytest.raises(SystemExit) as exit:
        read()
    assert exit.value.code == 2 and "`tokenizer_path` must be set" in capsys.readouterr().err


def test_a_launcher_may_say_later_where_the_tokenizer_is():
    assert read("--launch-status-path", "/run/status").tokenizer_path is None


def test_every_flag_survives_the_way_to_another_process(monkeypatch):
    config = RouterConfig(
        tokenizer_path="/models/a b",
        launch_status_path="/run/l",
        tokenizer_config_path="/models/c.json",
        shard_uds_path="/run/s",
        model_id="org/model",
        hostname="::1",
        port=1,
        max_concurrent_requests=2,
        max_input_tokens=3,
        max_total_tokens=4,
        max_batch_prefill_tokens=5,
        prefix_caching=False,
        max_batch_size=8,
        speculate=12,
        max_best_of=9,
        max_top_n_tokens=0,
        max_client_batch_size=10,
        payload_limit=11,
        compute_type="2-h200",
        api_key=("one", "two"),
        cors_allow_origin=("https://a.example", "https://b.example"),
        max_stop_sequences=6,
        validation_workers=7,
        graceful_termination_timeout=0.5,
        json_output=True,
    )
    assert all(getattr(config, field.name) != field.default for field in FIELDS), "a new flag is missing here"
    assert not any("one" in word or "two" in word for word in to_argv(config)), "other users can read command lines"
    for name, value in secrets_to_environment(config).items():
        monkeypatch.setenv(name, value)
    assert read(*to_argv(config)) == config


def test_the_environment_is_read_under_each_flags_name(monkeypatch):
    monkeypatch.setenv("TOKENIZER_PATH", "/models/m")
    monkeypatch.setenv("PORT", "8080")
    monkeypatch.setenv("ROUTER_HOSTNAME", "127.0.0.1")
    monkeypatch.setenv("HOSTNAME", "this-machine")  # set by every shell and container, and not meant for us
    monkeypatch.setenv("PREFIX_CACHING", "false")
    assert read() == RouterConfig("/models/m", port=8080, hostname="127.0.0.1", prefix_caching=False)
    assert read("-p", "81").port == 81


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--port", "0"), "`port` must be between 1 and 65535. Given: 0"),
        (("--port", "65536"), "`port` must be between 1 and 65535. Given: 65536"),
        (("--max-concurrent-requests", "0"), "`max_concurrent_requests` must be > 0. Given: 0"),
        (("--validation-workers", "0"), "`validation_workers` must be > 0"),
        (("--max-batch-prefill-tokens", "0"), "`max_batch_prefill_tokens` must be > 0"),
        (("--max-total-tokens", "-1"), "`max_total_tokens` must be > 0"),
        (("--max-total-tokens", "1"), "`max_total_tokens` must be > 1"),
        (("--max-batch-size", "0"), "`max_batch_size` must be > 0"),
        (("--speculate", "-1"), "`speculate` cannot be < 0"),
        (("--max-best-of", "0"), "`max_best_of` must be > 0"),
        (("--max-client-batch-size", "0"), "`max_client_batch_size` must be > 0"),
        (("--payload-limit", "0"), "`payload_limit` must be > 0"),
        (("--max-top-n-tokens", "-1"), "`max_top_n_tokens` cannot be < 0. Given: -1"),
        (("--max-stop-sequences", "-1"), "`max_stop_sequences` cannot be < 0"),
        (("--graceful-termination-timeout", "-1"), "`graceful_termination_timeout` cannot be < 0"),
        (("--max-input-tokens", "0"), "`max_input_tokens`"),
        (("--max-input-tokens", "9", "--max-total-tokens", "9"), "`max_input_tokens` (9) must be < `max_total_tokens` (9)"),
    ],
)
def test_a_value_that_cannot_work_is_a_usage_error(capsys, argv, message):
    with pytest.raises(SystemExit) as exit:
        read("--tokenizer-path", "x", *argv)
    assert exit.value.code == 2 and message in capsys.readouterr().err


def test_the_longest_prompt_may_be_limited_alone():
    assert read("--tokenizer-path", "x", "--max-input-tokens", "9").max_input_tokens == 9


def test_help_names_every_flag_with_its_environment_variable(capsys):
    with pytest.raises(SystemExit):
        read("--help")
    text = " ".join(capsys.readouterr().out.split())
    for field in FIELDS:
        assert f"--{field.name.replace('_', '-')}" in text and f"[env: {env_name(field)}]" in text

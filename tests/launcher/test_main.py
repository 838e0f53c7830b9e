"""The launcher's own command line: everything the original server's launcher takes, and what it says before it starts."""

import os
import subprocess
import sys

import pytest

from text_generation_launcher.__main__ import build_parser
from text_generation_launcher.config import LauncherConfig
from text_generation_launcher.ignored_flags import IgnoredFlags
from text_generation_launcher.runtime_report import runtime_report
from text_generation_proto.flags import from_namespace

# Flag -> a value that the original server takes for it; "" is a switch. Not here: --max-input-length (not with
# --max-input-tokens) and --env (no variable).
ORIGINAL = {
    "model-id": "bigscience/bloom",
    "revision": "main",
    "validation-workers": "2",
    "sharded": "true",
    "num-shard": "8",
    "quantize": "bitsandbytes",
    "dtype": "bfloat16",
    "kv-cache-dtype": "fp8_e4m3fn",
    "trust-remote-code": "",
    "max-concurrent-requests": "128",
    "max-best-of": "2",
    "max-stop-sequences": "4",
    "max-top-n-tokens": "5",
    "max-input-tokens": "1024",
    "max-total-tokens": "2048",
    "waiting-served-ratio": "0.3",
    "max-batch-prefill-tokens": "4096",
    "max-batch-total-tokens": "16000",
    "max-waiting-tokens": "20",
    "max-batch-size": "32",
    "cuda-graphs": "1,2,4,8,16,32",
    "hostname": "127.0.0.1",
    "port": "80",
    "prometheus-port": "9000",
    "shard-uds-path": "/tmp/text-generation-server",
    "master-addr": "localhost",
    "master-port": "29500",
    "huggingface-hub-cache": "/data",
    "weights-cache-override": "/data/weights",
    "disable-custom-kernels": "",
    "cuda-memory-fraction": "0.9",
    "rope-scaling": "linear",
    "rope-factor": "2.0",
    "json-output": "",
    "otlp-endpoint": "http://collector:4317",
    "otlp-service-name": "text-generation-inference.router",
    "cors-allow-origin": "https://a.example",
    "api-key": "sk-1234",
    "watermark-gamma": "0.5",
    "watermark-delta": "2.0",
    "ngrok": "",
    "ngrok-authtoken": "sk-5678",
    "ngrok-edge": "edge",
    "tokenizer-config-path": "/data/tokenizer_config.json",
    "disable-grammar-support": "",
    "max-client-batch-size": "4",
    "lora-adapters": "a/b,c=/d",
    "usage-stats": "off",
    "payload-limit": "2000000",
    "enable-prefill-logprobs": "",
    "graceful-termination-timeout": "90",
}
SECRETS = ("sk-1234", "sk-5678")


def read(*argv: str) -> tuple[LauncherConfig, IgnoredFlags]:
    parser = build_parser()
    namespace = parser.parse_args(argv)
    return from_namespace(LauncherConfig, parser, namespace), from_namespace(IgnoredFlags, parser, namespace)


def launched(*argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Of a model that is not there, so that it ends after its first lines."""
    command = [sys.executable, "-m", "text_generation_launcher", "--model-id", "./no/such/folder", *argv]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=60)


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*ORIGINAL, "log-level"):
        monkeypatch.delenv(name.upper().replace("-", "_"), raising=False)


def test_every_flag_of_the_original_launcher_is_taken_and_from_the_environment_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from_argv = read(*(word for name, value in ORIGINAL.items() for word in (f"--{name}", value) if word))
    for name, value in ORIGINAL.items():
        monkeypatch.setenv("ROUTER_HOSTNAME" if name == "hostname" else name.upper().replace("-", "_"), value or "true")
    assert read() == from_argv
    config, ignored = from_argv
    assert None not in [getattr(config if hasattr(config, name) else ignored, name) for name in map(_field, ORIGINAL)]


def test_api_key_and_origins_may_be_repeated() -> None:
    config, _ = read("--api-key", "a", "--api-key", "b", "--cors-allow-origin", "c", "--cors-allow-origin", "d")
    assert (config.api_key, config.cors_allow_origin) == (("a", "b"), ("c", "d"))


def test_flags_without_effect_have_a_heading_of_their_own() -> None:
    text = build_parser().format_help()
    assert text.index("--json-output") < text.index("accepted for existing command lines, without effect:")
    assert text.index("accepted for existing command lines") < text.index("--max-waiting-tokens")


def test_flags_without_effect_are_one_warning_each_and_secrets_are_in_no_line() -> None:
    switches = [word for name, value in ORIGINAL.items() if name != "model-id" for word in (f"--{name}", value) if word]
    done = launched(*switches, "--no-json-output", "--env", "--num-shard", "1", "--sharded", "false", HOSTNAME="pod-7f9c")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert sum("WARNING launcher: --" in line for line in lines) == 17
    assert sum("INFO launcher: runtime python=" in line for line in lines) == 1
    assert "./no/such/folder: there is no such file or folder" in lines[-1]
    assert not [secret for secret in SECRETS if secret in done.stdout + done.stderr]


def test_a_mistake_does_not_repeat_secrets() -> None:
    done = launched("--api-key", "sk-1234,sk-5678")
    assert done.returncode == 2
    assert not [secret for secret in SECRETS if secret in done.stdout + done.stderr]


def test_log_level_is_for_the_launcher_too() -> None:
    done = launched("--ngrok", LOG_LEVEL="error")
    assert [line.split()[1] for line in done.stderr.splitlines()] == ["ERROR"]


def test_the_runtime_report_names_versions_and_gpus() -> None:
    words = runtime_report(2).split()
    assert words[0] == "runtime" and words[-1] == "num_gpus=2"
    names = [word.partition("=")[0] for word in words[1:]]
    assert names == ["python", "platform", "text-generation-inference", "torch", "transformers", "num_gpus"]
    assert f"python={sys.version.split()[0]}" in words


def _field(name: str) -> str:
    return name.replace("-", "_")

"""The command: it serves until it is told to stop, leaves nothing behind, and refuses in one line what it cannot serve."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from random_models import save_random_model
from shard_processes import free_port

SERVE_EACH = Path(__file__).parent.parent / "serve_each.py"
SERVER = [sys.executable, "-m", "text_generation_server"]
LONG_PATH = "/tmp/" + "x" * 110


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a server that was started and stopped ended, and those that could not serve meanwhile."""

    exit_code: int
    log: str
    socket_was_left: bool
    refused: dict[str, tuple[int, str]]  # exit code and standard error


@pytest.fixture(scope="module")
def models(random_bloom: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders that are each the random model with one thing wrong."""
    folder = tmp_path_factory.mktemp("broken")
    names = ("no weights", "unknown type", "cut short", "no config", "other shape", "own code")
    broken = {name: folder / name for name in names}
    for path in broken.values():
        shutil.copytree(random_bloom, path)
    (broken["no weights"] / "model.safetensors").unlink()
    (broken["no config"] / "config.json").unlink()
    change_config(broken["unknown type"], model_type="unheard-of")
    change_config(broken["other shape"], hidden_size=128)
    change_config(broken["own code"], model_type="own", auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    broken["llama cut short"] = save_random_model(folder / "llama", "llama")
    cut_short(broken["llama cut short"] / "model.safetensors")
    broken["no gguf"] = folder / "no.gguf"
    broken["no gguf"].write_bytes(b"GGUF")
    cut_short(broken["cut short"] / "model.safetensors")
    return broken | {"whole": random_bloom, "gone": folder / "gone"}


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.fixture(scope="module")
def outcome(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("main")
    path = folder / "shard-0"
    leave_stale_socket(path)
    command = [*SERVER, "serve", str(models["whole"]), "--shard-uds-path", str(folder / "shard"), "--kv-cache-gib", "0.01"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        wait_until_it_listens(process, path)
        refused = serve_each(models, folder)
        process.send_signal(signal.SIGTERM)
        exit_code = process.wait(20)
    finally:
        process.kill()
    return Outcome(exit_code, (folder / "log").read_text(), path.exists(), refused)


def serve_each(models: dict[str, Path], folder: Path) -> dict[str, tuple[int, str]]:
    def serve(model: str, *arguments: str, prefix: str | None = None) -> list[str]:
        return ["serve", str(models[model]), "--shard-uds-path", prefix or str(folder / f"{len(model)}-other"), *arguments]

    three = ["--world-size", "3", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    cases = {model: serve(model) for model in models if model != "whole"}
    cases |= {f"rank {rank} of 3": serve("whole", *three, "--rank", str(rank)) for rank in range(3)}
    cases["socket taken"] = serve("whole", "--kv-cache-gib", "0.01", prefix=str(folder / "shard"))
    cases["socket path too long"] = serve("whole", "--kv-cache-gib", "0.01", prefix=LONG_PATH)
    cases["socket folder gone"] = serve("whole", "--kv-cache-gib", "0.01", prefix=str(folder / "gone" / "shard"))
    cases["download of nothing"] = ["download-weights", str(models["gone"])]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, str(SERVE_EACH)], input=json.dumps(cases), env=environment, text=True, capture_output=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    refused: dict[str, tuple[int, str]] = json.loads(run.stdout)
    return refused


def leave_stale_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


def wait_until_it_listens(process: subprocess.Popen[bytes], path: Path) -> None:
    deadline = time.monotonic() + 60
    with socket.socket(socket.AF_UNIX) as probe:
        while time.monotonic() < deadline:
            assert process.poll() is None, "it ended before it listened"
            with contextlib.suppress(OSError):
                probe.connect(str(path))
                return
            time.sleep(0.05)
    raise AssertionError("it did not listen in time")


def test_sigterm_ends_with_status_0_and_no_socket_file(outcome: Outcome) -> None:
    assert outcome.exit_code == 0, outcome.log
    assert not outcome.socket_was_left
    assert "Traceback" not in outcome.log


def test_a_ready_server_says_so_with_what_it_serves(outcome: Outcome) -> None:
    assert " INFO shard: ready model_type=bloom dtype=" in outcome.log
    assert " INFO shard: listening socket=" in outcome.log


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("gone", "gone"),
        ("no config", "cannot read"),
        ("no weights", "weights"),
        ("unknown type", "model type 'unheard-of' is not served"),
        ("cut short", "was it cut short?"),
        ("llama cut short", "was it cut short?"),
        ("own code", "pass --trust-remote-code to run it"),
        ("no gguf", "no.gguf cannot be converted"),
        ("other shape", "expected [300, 128]"),
        ("rank 0 of 3", "8 attention heads cannot be split over 3 shards"),
        ("rank 1 of 3", "8 attention heads cannot be split over 3 shards"),
        ("rank 2 of 3", "8 attention heads cannot be split over 3 shards"),
        ("socket taken", "another shard listens on"),
        ("socket path too long", LONG_PATH),
        ("socket folder gone", "gone/shard-0"),
        ("download of nothing", "gone"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(outcome: Outcome, case: str, message: str) -> None:
    exit_code, log = outcome.refused[case]
    last = log.splitlines()[-1]
    assert exit_code == 1, log
    assert "Traceback" not in log
    assert " ERROR " in last and ": Error: " in last
    assert message in last

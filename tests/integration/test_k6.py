"""The k6 smoke test against a real launcher: all requests answered, and nothing left when it stops."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shard_processes import START_SECONDS, free_port

K6 = Path(sys.executable).with_name("k6")
SMOKE_TEST = Path(__file__).parents[2] / "k6" / "smoke_test.js"
TRAFFIC_SECONDS = "6"
P95_SECONDS = "60"  # how fast this machine is today is not what is tested
K6_SECONDS = 120.0  # far more than the traffic takes, also on a busy machine
STOP_SECONDS = 60.0


def test_the_smoke_test_passes_and_the_launcher_leaves_no_socket(embedded_model: Path, tmp_path: Path) -> None:
    port = free_port()
    with launcher(embedded_model, port, tmp_path / "shard") as process:
        wait_until_healthy(process, port)
        assert (tmp_path / "shard-0") in tmp_path.iterdir()
        summary = smoke_test(port)
        process.terminate()
        assert process.wait(STOP_SECONDS) == 0
    assert list(tmp_path.iterdir()) == []
    assert summary["failed"] == "0"
    assert int(summary["requests"]) >= 7  # each kind of request at least once
    assert float(summary["RPS"]) > 0


@contextmanager
def launcher(model: Path, port: int, uds_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "text_generation_launcher", "--model-id", str(model), "--hostname", "127.0.0.1"]
    ports = ["--port", str(port), "--master-port", str(free_port()), "--shard-uds-path", str(uds_path)]
    process = subprocess.Popen([*command, *ports, "--num-shard", "1", "--graceful-termination-timeout", "10"])
    try:
        yield process
    finally:
        process.kill()  # its children notice and end too
        process.wait()


def wait_until_healthy(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_healthy(port):
        assert process.poll() is None, "the launcher ended while it started"
        assert time.monotonic() < deadline, "the server did not become healthy in time"
        time.sleep(0.1)


def is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def smoke_test(port: int) -> dict[str, str]:
    """Runs k6 and returns its table, column by column."""
    command = [str(K6), "run", "--quiet", "--no-usage-report", "--address", "", str(SMOKE_TEST)]
    settings = {"HOST": "127.0.0.1", "PORT": str(port), "DURATION": TRAFFIC_SECONDS, "P95_SECONDS": P95_SECONDS}
    k6 = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=K6_SECONDS)
    assert k6.returncode == 0, k6.stdout + k6.stderr
    names, _, values = (line.strip("| ").split(" | ") for line in k6.stdout.strip().splitlines())
    return dict(zip(names, values, strict=True))

"""Thousands of requests that schemathesis makes from our own OpenAPI document: none fails, none is answered otherwise."""

import re
import subprocess
import sys
from pathlib import Path

from served import Served

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
MIN_REQUESTS = 2000


def test_no_request_is_answered_otherwise_than_the_document_says(embedded_model: Path, tmp_path: Path) -> None:
    sockets = tmp_path / "sockets"
    sockets.mkdir()
    with Served(embedded_model, sockets, "--max-total-tokens", "16") as served:
        url = f"http://127.0.0.1:{served.port}/api-doc/openapi.json"
        command = [sys.executable, "-m", "schemathesis.cli", "run", url, "--checks", CHECKS, "--continue-on-failure"]
        # One worker: hypothesis parses sources, and two threads that do so at once make CPython 3.11 raise a SystemError.
        command += ["--phases", "coverage,fuzzing", "-n", "5", "--seed", "1", "--workers", "1"]
        process = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert process.returncode == 0, process.stdout[-5000:] + process.stderr[-1000:]
    generated = re.search(r"(\d+) generated", process.stdout)
    assert generated and int(generated[1]) >= MIN_REQUESTS, process.stdout[-1000:]

"""The server that the tests of real clients share: it lives as long as the session."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Served


@pytest.fixture(scope="session")
def shared_server(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(embedded_model, tmp_path_factory.mktemp("sockets"), "--dtype", "float32") as served:
        yield served
    assert served.returncode == 0


@pytest.fixture
def url(shared_server: Served) -> str:
    return f"http://127.0.0.1:{shared_server.port}"

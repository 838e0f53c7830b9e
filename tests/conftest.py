"""Fixtures that several suites share: the embedded model, tiny random ones, and shard processes."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shard_processes import ShardProcesses

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The models are tiny, and threads that wait for each other on busy cores only make them slow."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """What a test configures of logging ends with it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    return REPOSITORY / "models" / "tiny-bloom"


@pytest.fixture(scope="session")
def random_bloom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_models import save_random_bloom

    return save_random_bloom(tmp_path_factory.mktemp("random-bloom"))


@pytest.fixture(scope="module")
def shard_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShardProcesses]:
    """Starts shard groups on demand and stops them all after the module."""
    with ShardProcesses(tmp_path_factory.mktemp("sockets")) as processes:
        yield processes

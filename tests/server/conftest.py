"""What two ranks compute together, for the tests that look at it."""

from pathlib import Path
from typing import Any

import pytest

import two_ranks
from sampling_rows import VOCAB_SIZE
from shard_processes import free_port
from tiny_models import save_random_bloom


@pytest.fixture(scope="session")
def uneven_bloom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 heads and 301 tokens: neither is a power of two, and the vocabulary does not split evenly over two ranks."""
    folder = tmp_path_factory.mktemp("uneven-bloom")
    return save_random_bloom(folder, two_ranks.HEADS, num_layers=2, vocab_size=VOCAB_SIZE)


@pytest.fixture(scope="session")
def ranks(uneven_bloom: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks computed, see two_ranks.py."""
    return two_ranks.run(uneven_bloom, tmp_path_factory.mktemp("two-ranks"), free_port())

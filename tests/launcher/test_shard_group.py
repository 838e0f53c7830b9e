"""Shards live and die together."""

import os
import sys
import time
from pathlib import Path

import pytest

from launcher.fake_launch import FAKE_CHILD, wait_until
from text_generation_launcher.process import Child
from text_generation_launcher.shard_group import ShardGroup


def never() -> bool:
    return False


def group(folder: Path, *behaviours: str) -> ShardGroup:
    """One shard per behaviour of `fake_child.py`."""
    sockets = [folder / f"s-{rank}" for rank in range(len(behaviours))]

    def start_child(rank: int) -> Child:
        argv = [sys.executable, "-S", str(FAKE_CHILD), str(folder / "pids"), behaviours[rank], str(sockets[rank])]
        return Child(f"shard-{rank}", argv, os.environ, json_output=False)

    return ShardGroup(sockets, start_child, grace_seconds=0.3)


def test_ranks_are_missing_until_their_sockets_are_there(tmp_path: Path) -> None:
    shards = group(tmp_path, "serve", "serve")
    assert shards.missing() == [0, 1]
    shards.start()
    wait_until(lambda: shards.missing() == [])
    shards.stop(never)


@pytest.mark.parametrize("behaviour", ["serve", "stubborn"])
def test_stop_leaves_neither_processes_nor_sockets(tmp_path: Path, behaviour: str) -> None:
    shards = group(tmp_path, behaviour, "serve")
    shards.start()
    wait_until(lambda: shards.missing() == [])
    shards.stop(never)
    assert [path.name for path in tmp_path.iterdir()] == ["pids"]
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_sockets_of_before_do_not_count_as_up(tmp_path: Path) -> None:
    (tmp_path / "s-0").touch()
    shards = group(tmp_path, "refuse")
    shards.start()
    assert shards.missing() == [0]
    shards.stop(never)


def test_sockets_of_another_server_stay(tmp_path: Path) -> None:
    (tmp_path / "s-0").touch()
    group(tmp_path, "serve").stop(never)
    assert (tmp_path / "s-0").exists()


def test_the_dead_one_is_found(tmp_path: Path) -> None:
    shards = group(tmp_path, "serve", "refuse")
    shards.start()
    wait_until(lambda: shards.first_dead() is not None)
    dead = shards.first_dead()
    assert dead is not None and dead.name == "shard-1"
    shards.stop(never)


def test_of_several_dead_ones_the_first_is_found(tmp_path: Path) -> None:
    def start_child(rank: int) -> Child:
        argv = [sys.executable, "-S", "-c", f"import time; time.sleep({2 - 2 * rank})"]
        return Child(f"shard-{rank}", argv, os.environ, json_output=False)

    shards = ShardGroup([tmp_path / "s-0", tmp_path / "s-1"], start_child, grace_seconds=0.3)
    shards.start()
    time.sleep(2.5)
    dead = shards.first_dead()
    assert dead is not None and dead.name == "shard-1"
    shards.stop(never)

"""One launcher at a time, whatever has become of the one before."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from launcher.fake_launch import wait_until
from text_generation_launcher.claim import Claim
from text_generation_launcher.process import LaunchError


def test_a_path_belongs_to_one_launcher_at_a_time(tmp_path: Path) -> None:
    first, other = Claim(str(tmp_path / "s")), Claim(str(tmp_path / "t"))
    with pytest.raises(LaunchError, match=r"another server starts or runs on .*/s: give this one its own --shard-uds-path"):
        Claim(str(tmp_path / "s"))
    first.give_back()
    again = Claim(str(tmp_path / "s"))
    again.give_back()
    other.give_back()
    assert list(tmp_path.iterdir()) == []


def _claim_and_wait(path: str) -> None:
    Claim(path)
    signal.pause()


def test_a_killed_launchers_claim_is_gone_with_it(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    process = multiprocessing.get_context("fork").Process(target=_claim_and_wait, args=(path,))
    process.start()
    wait_until(lambda: (tmp_path / "s-lock").exists() and not _is_free(path))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert _is_free(path)


def _is_free(path: str) -> bool:
    try:
        Claim(path).give_back()
    except LaunchError:
        return False
    return True


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    (tmp_path / "s-lock").symlink_to(tmp_path / "precious")
    with pytest.raises(LaunchError, match=r"--shard-uds-path: cannot write .*s-lock"):
        Claim(str(tmp_path / "s"))

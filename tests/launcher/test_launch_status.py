"""The small file that the router reads."""

import json
from pathlib import Path

import pytest

from text_generation_launcher.launch_status import LaunchStatus
from text_generation_launcher.process import LaunchError


def test_it_is_one_json_object_written_anew_each_time(tmp_path: Path) -> None:
    status = LaunchStatus(tmp_path / "s-status")
    status.write("downloading the weights of some/name", None)
    assert json.loads((tmp_path / "s-status").read_text()) == {
        "stage": "downloading the weights of some/name",
        "model_path": None,
        "is_over": False,
    }
    status.write("giving up", Path("/models/ü"), is_over=True)
    assert json.loads((tmp_path / "s-status").read_text()) == {"stage": "giving up", "model_path": "/models/ü", "is_over": True}
    status.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_reader_never_sees_half_of_it(tmp_path: Path) -> None:
    status = LaunchStatus(tmp_path / "s-status")
    status.write("first", None)
    with (tmp_path / "s-status").open() as reader:
        status.write("second", None)
        assert json.load(reader)["stage"] == "first"


def test_what_a_killed_launcher_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "s-status").write_text("old")
    (tmp_path / "s-status.new").write_text("{")
    LaunchStatus(tmp_path / "s-status").write("first", None)
    assert [path.name for path in tmp_path.iterdir()] == ["s-status"]


def test_a_link_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    for name in ("s-status", "s-status.new"):
        (tmp_path / name).symlink_to(tmp_path / "precious")
    LaunchStatus(tmp_path / "s-status").write("first", None)
    assert (tmp_path / "precious").read_text() == "kept"


def test_one_that_was_not_written_here_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "s-status").write_text("another server's")
    LaunchStatus(tmp_path / "s-status").remove()
    assert (tmp_path / "s-status").exists()


def test_what_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"--shard-uds-path: cannot write .*nowhere/s-status \(No such file"):
        LaunchStatus(tmp_path / "nowhere" / "s-status").write("first", None)

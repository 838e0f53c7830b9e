"""The life of the server: started, watched, restarted, stopped, with small programs in place of shards and router."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from launcher.fake_launch import FakeLaunch, free_port, wait_until
from text_generation_launcher.launch import RestartBudget
from text_generation_launcher.process import LaunchError

DRIVER = Path(__file__).with_name("fake_launch.py")


def running(folder: Path, shard: str = "serve", router: str = "serve") -> tuple[FakeLaunch, subprocess.Popen[str]]:
    """A launcher in a process of its own, and the object that knows its children."""
    argv = [sys.executable, str(DRIVER), str(folder), shard, router]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = []
    while not lines or "shards are up" not in lines[-1]:
        lines.append(process.stderr.readline())
        assert lines[-1], f"it ended before it was up: {lines}"
    fake = FakeLaunch(folder)
    wait_until(lambda: bool(fake.pids("router")))
    return fake, process


@pytest.fixture(autouse=True)
def nothing_is_left_behind(tmp_path: Path) -> Iterator[None]:
    yield
    wait_until(lambda: not FakeLaunch(tmp_path).left_behind())


def test_stop_ends_with_status_0_and_leaves_neither_process_nor_socket(tmp_path: Path) -> None:
    with FakeLaunch(tmp_path) as fake:
        fake.wait_until_up()
    assert fake.status == 0
    assert fake.left_behind() == []


def test_a_shard_that_cannot_start_ends_everything_with_status_1_and_its_reason(tmp_path: Path) -> None:
    with FakeLaunch(tmp_path, shard="refuse") as fake:
        assert fake.wait() == 1
    last = fake.messages[-1]
    assert "ended with exit code 1: Error: the weights are cut short" in last and "shard-" in last and "\n" not in last
    assert fake.left_behind() == []


def test_a_shard_that_dies_is_restarted_with_its_group_while_the_router_stays(tmp_path: Path) -> None:
    with FakeLaunch(tmp_path) as fake:
        fake.wait_until_up()
        os.kill(fake.pids("shard-1")[0], signal.SIGKILL)
        wait_until(lambda: len(fake.pids("shard-0")) == len(fake.pids("shard-1")) == 2)
        fake.wait_until_up(num_times=2)
        assert len(fake.pids("router")) == 1
    assert fake.status == 0


def test_deaths_beyond_max_restarts_end_everything_with_status_1(tmp_path: Path) -> None:
    with FakeLaunch(tmp_path, overrides={"max_restarts": 1}) as fake:
        fake.wait_until_up()
        fake.shard = "refuse"  # the group dies again while it is being restarted
        os.kill(fake.pids("shard-0")[0], signal.SIGKILL)
        assert fake.wait() == 1
    assert "giving up after 1 restarts" in fake.messages[-1] and "Error: the weights" in fake.messages[-1]
    assert fake.left_behind() == []


def test_max_restarts_0_ends_everything_at_the_first_death(tmp_path: Path) -> None:
    with FakeLaunch(tmp_path, overrides={"max_restarts": 0}) as fake:
        fake.wait_until_up()
        os.kill(fake.pids("shard-0")[0], signal.SIGKILL)
        assert fake.wait() == 1
    assert len(fake.pids("shard-0")) == 1


def test_a_router_that_waits_for_shards_is_told_that_none_will_come(tmp_path: Path) -> None:
    with FakeLaunch(tmp_path, router="stubborn", overrides={"max_restarts": 0}) as fake:
        fake.wait_until_up()
        assert fake.launch_status and not fake.launch_status["is_over"]
        os.kill(fake.pids("shard-0")[0], signal.SIGKILL)
        wait_until(lambda: bool(fake.launch_status and fake.launch_status["is_over"]))
        os.kill(fake.pids("router")[0], signal.SIGKILL)
        assert fake.wait() == 1


def test_two_launchers_do_not_start_on_one_path(tmp_path: Path) -> None:
    """The first one's shards are not up yet."""
    with FakeLaunch(tmp_path, overrides={"model_id": "some/name"}) as first:
        wait_until(lambda: bool(first.pids("download")))
        with FakeLaunch(tmp_path) as second:
            assert second.wait() == 1
        assert "another server starts or runs on" in second.messages[-1]
    assert first.status == 0


def test_restarts_longer_ago_than_the_window_do_not_count() -> None:
    budget = RestartBudget(max_restarts=1, window_seconds=0.0)
    budget.spend("first")
    budget.spend("second")
    budget = RestartBudget(max_restarts=1, window_seconds=60.0)
    budget.spend("first")
    with pytest.raises(LaunchError, match="second"):
        budget.spend("second")


def test_a_router_that_dies_is_restarted_alone(tmp_path: Path) -> None:
    with FakeLaunch(tmp_path) as fake:
        fake.wait_until_up()
        os.kill(fake.pids("router")[0], signal.SIGKILL)
        wait_until(lambda: len(fake.pids("router")) == 2)
        assert len(fake.pids("shard-0")) == 1
    assert fake.status == 0


def test_a_router_that_does_not_understand_its_flags_ends_everything(tmp_path: Path) -> None:
    with FakeLaunch(tmp_path, router="usage") as fake:
        assert fake.wait() == 1
    assert "router ended with exit code 2" in fake.messages[-1]


def test_a_port_in_use_is_said_in_one_line_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        port = taken.getsockname()[1]
        with FakeLaunch(tmp_path, overrides={"port": port}) as fake:
            assert fake.wait() == 1
    assert f"port {port} is in use" in fake.messages[-1]
    assert fake.pids("shard-0") == []


def test_a_missing_folder_is_said_in_one_line_without_asking_the_hub(tmp_path: Path) -> None:
    with FakeLaunch(tmp_path, overrides={"model_id": "./no/such/folder"}) as fake:
        assert fake.wait() == 1
    assert "./no/such/folder: there is no such file or folder" in fake.messages[-1]


def test_another_servers_sockets_and_status_are_left_alone(tmp_path: Path) -> None:
    status = tmp_path / "s-status"
    status.write_text("another's")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s-1"))
        other.listen()
        with FakeLaunch(tmp_path) as fake:
            assert fake.wait() == 1
    assert "another server listens" in fake.messages[-1] and status.read_text() == "another's"
    assert fake.pids("router") == []
    for path in fake.left_behind():
        Path(path).unlink()


def test_a_name_on_the_hub_is_downloaded_while_the_router_answers_already(tmp_path: Path) -> None:
    with FakeLaunch(tmp_path, overrides={"model_id": "some/name"}) as fake:
        fake.wait_for_status("downloading the weights of some/name", None)
        wait_until(lambda: bool(fake.pids("router") and fake.pids("download")))
        assert fake.pids("shard-0") == []
        (tmp_path / "weights").touch()
        fake.wait_until_up()
        fake.wait_for_status("starting the shards", tmp_path)
        assert len(fake.pids("router")) == 1
    assert fake.status == 0 and fake.launch_status is None


def test_a_folder_that_may_need_conversion_is_named_from_the_start(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with FakeLaunch(tmp_path) as fake:
        fake.wait_for_status(f"preparing the weights of {tmp_path}", tmp_path)
        (tmp_path / "weights").touch()
        fake.wait_for_status("starting the shards", tmp_path)
        fake.wait_until_up()
    assert fake.status == 0


def test_the_status_says_that_shards_start_and_start_again(tmp_path: Path) -> None:
    with FakeLaunch(tmp_path) as fake:
        wait_until(lambda: bool(fake.pids("router")))
        fake.wait_for_status("starting the shards", tmp_path)
        fake.wait_until_up()
        os.kill(fake.pids("shard-0")[0], signal.SIGKILL)
        fake.wait_for_status("starting the shards again", tmp_path)
    assert fake.launch_status is None


def test_a_status_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "s-status").mkdir()
    with FakeLaunch(tmp_path) as fake:
        assert fake.wait() == 1
    assert "--shard-uds-path: cannot write" in fake.messages[-1] and fake.pids("router") == []
    (tmp_path / "s-status").rmdir()


def test_a_download_that_fails_ends_everything_with_its_reason(tmp_path: Path) -> None:
    with FakeLaunch(tmp_path, download="refuse", overrides={"model_id": "some/name"}) as fake:
        assert fake.wait() == 1
    assert "download ended with exit code 1: Error: the weights are cut short" in fake.messages[-1]
    assert fake.pids("shard-0") == [] and fake.left_behind() == []


def test_a_router_that_cannot_start_ends_a_download(tmp_path: Path) -> None:
    with FakeLaunch(tmp_path, router="refuse", overrides={"model_id": "some/name"}) as fake:
        assert fake.wait() == 1
    assert "the router could not be started: router ended with exit code 1" in fake.messages[-1]
    assert fake.left_behind() == []


def test_a_stop_while_downloading_ends_router_and_download_with_status_0(tmp_path: Path) -> None:
    with FakeLaunch(tmp_path, overrides={"model_id": "some/name"}) as fake:
        wait_until(lambda: bool(fake.pids("router") and fake.pids("download")))
    assert fake.status == 0
    assert fake.pids("shard-0") == [] and fake.left_behind() == []


def test_an_api_key_is_in_the_routers_environment_and_nowhere_else(tmp_path: Path) -> None:
    with FakeLaunch(tmp_path, overrides={"api_key": ("sk-1234",)}) as fake:
        fake.wait_until_up()
        router, shard = (psutil.Process(fake.pids(name)[0]) for name in ("router", "shard-0"))
        assert router.environ()["API_KEY"] == "sk-1234"
        assert "API_KEY" not in shard.environ()
        assert "sk-1234" not in " ".join([*router.cmdline(), *shard.cmdline()])
    assert "sk-1234" not in " ".join(fake.messages)


def test_sockets_left_by_a_killed_server_are_removed(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(tmp_path / "s-0"))
    with FakeLaunch(tmp_path, shard="refuse") as fake:  # never makes one
        assert fake.wait() == 1
    assert not (tmp_path / "s-0").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_launcher_with_status_0(tmp_path: Path, number: signal.Signals) -> None:
    fake, process = running(tmp_path)
    process.send_signal(number)
    assert process.wait(20) == 0
    assert fake.left_behind() == []


def test_a_second_signal_kills_a_router_that_takes_its_time(tmp_path: Path) -> None:
    fake, process = running(tmp_path, router="stubborn")
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(8) == 0  # less than the 15 s that it would have had
    assert fake.left_behind() == []


def test_children_end_when_the_launcher_is_killed(tmp_path: Path) -> None:
    fake, process = running(tmp_path)
    process.kill()
    process.wait(20)
    for name in ("s-status", "s-lock"):  # the next launch takes them over
        (tmp_path / name).unlink()
    wait_until(lambda: fake.left_behind() == [])

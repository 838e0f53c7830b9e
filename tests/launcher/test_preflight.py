"""What is refused before anything starts."""

import socket
from pathlib import Path

import pytest

from launcher.fake_launch import free_port
from text_generation_launcher.preflight import check_folder, check_port, check_sockets
from text_generation_launcher.process import LaunchError


def test_a_free_port_passes() -> None:
    check_port("127.0.0.1", free_port())


def test_a_port_taken_on_every_address_is_refused() -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken, pytest.raises(LaunchError, match="in use"):
        check_port("127.0.0.1", taken.getsockname()[1])


def test_a_host_that_does_not_exist_is_refused() -> None:
    with pytest.raises(LaunchError, match=r"no\.such\.host\.invalid"):
        check_port("no.such.host.invalid", 3000)


def test_the_sockets_of_a_running_server_are_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as running:
        running.bind(str(tmp_path / "s-0"))
        running.listen()
        with pytest.raises(LaunchError, match="another server listens"):
            check_sockets([tmp_path / "s-0"])
    check_sockets([tmp_path / "s-0"])  # it is gone now, its file is not


def test_a_socket_path_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="no folder"):
        check_sockets([tmp_path / "nowhere" / "s-0"])
    with pytest.raises(LaunchError, match="at most 107"):
        check_sockets([tmp_path / ("s" * 100)])


def test_a_folder_without_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"no config\.json"):
        check_folder(tmp_path)
    (tmp_path / "config.json").touch()
    check_folder(tmp_path)

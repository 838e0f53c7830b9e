"""What can be checked before anything is started, so that it fails at once and in one line.

In: what the person asked for. Out: nothing, or a LaunchError that says what to do.
Knows nothing of weights: whether they are whole, the shards find out.
"""

import os
import socket
from collections.abc import Sequence
from pathlib import Path

from text_generation_launcher.process import LaunchError

MAX_SOCKET_PATH_BYTES = 107  # sun_path in <sys/un.h>, less its closing zero


def check_port(hostname: str, port: int) -> None:
    try:
        family, kind, _, _, address = socket.getaddrinfo(hostname, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            # As the router does: a port that is only in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()  # with SO_REUSEADDR, some binds succeed beside a listener and only this fails
    except OSError as error:
        reason = error.strerror or str(error)
        raise LaunchError(
            f"port {port} is in use or not allowed on {hostname} ({reason}): choose another with --port"
        ) from None


def check_sockets(sockets: Sequence[Path]) -> None:
    folder, longest = sockets[-1].parent, len(os.fsencode(sockets[-1]))
    if not folder.is_dir():
        raise LaunchError(f"--shard-uds-path: there is no folder {folder}")
    if longest > MAX_SOCKET_PATH_BYTES:
        raise LaunchError(
            f"--shard-uds-path: {sockets[-1]} has {longest} bytes, a socket's path at most {MAX_SOCKET_PATH_BYTES}"
        )
    for path in sockets:
        if _answers(path):
            raise LaunchError(f"another server listens on {path}: give this one its own --shard-uds-path")


def check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise LaunchError(f"{folder} has no config.json: it is not the folder of a model")


def _answers(path: Path) -> bool:
    """A live server's socket accepts; one left behind by a killed server refuses and may be removed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except PermissionError:  # another user's
            return True
        except OSError:
            return False
        return True

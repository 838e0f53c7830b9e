"""Claim: one launcher at a time on the path of its shards' sockets.

In: the path. Out: a claim that lasts until it is given back, or until its process is gone, however it went. A server that is
still loading has no socket yet that could answer: two would take each other's for their own.
"""

import contextlib
import fcntl
import os
from pathlib import Path

from text_generation_launcher.process import LaunchError


class Claim:
    """A locked file beside the sockets: the kernel takes the lock back with the process."""

    def __init__(self, shard_uds_path: str) -> None:
        """
        Raises:
            LaunchError: another launcher has the path, or the file cannot be made.
        """
        self._path = Path(f"{shard_uds_path}-lock")
        try:
            self._handle = _open(self._path)
            while not _lock(self._handle, self._path):  # its owner has removed it in the meantime
                os.close(self._handle)
                self._handle = _open(self._path)
        except BlockingIOError:
            os.close(self._handle)
            advice = "give this one its own --shard-uds-path"
            raise LaunchError(f"another server starts or runs on {shard_uds_path}: {advice}") from None
        except OSError as error:
            raise LaunchError(f"--shard-uds-path: cannot write {self._path} ({error.strerror})") from None

    def give_back(self) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._handle)


def _open(path: Path) -> int:
    """/tmp is everyone's: never through a link that was there."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _lock(handle: int, path: Path) -> bool:
    """Whether what is locked now is still what lies at the path."""
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), path.stat())
    return False

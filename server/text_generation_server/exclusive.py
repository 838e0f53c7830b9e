"""One process at a time: ranks and servers that start together convert the same model once, and the others wait for it.

In: a file or folder. Out: a `with` block that no other process is in for the same one. The kernel ends it with the process.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def exclusively(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # network file systems may know no locks; then whoever is last wins
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)

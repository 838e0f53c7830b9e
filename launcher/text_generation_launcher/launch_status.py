"""LaunchStatus: how far the launch is, in a small file for the router, which answers HTTP before there is anything behind it.

In: a stage in words, the model's folder once it is known, and whether it is all over. Out: {"stage": "...", "model_path": "..."
or null, "is_over": false}. Whoever reads it sees the old one or the new one, never half of it.
"""

import contextlib
import json
import os
from pathlib import Path

from text_generation_launcher.process import LaunchError


class LaunchStatus:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_ours = False

    def write(self, stage: str, model_path: Path | None, is_over: bool = False) -> None:
        """Raises: LaunchError."""
        status = {"stage": stage, "model_path": None if model_path is None else str(model_path), "is_over": is_over}
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            new.unlink(missing_ok=True)
            with new.open("x") as file:  # /tmp is everyone's: never into a file or through a link that was there
                json.dump(status, file)
            os.replace(new, self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)  # in /tmp it would be in the way of another user's server
            raise LaunchError(f"--shard-uds-path: cannot write {self._path} ({error.strerror})") from None
        self._is_ours = True

    def remove(self) -> None:
        """Only one that was written here: the path may be another server's, and then this launch has failed."""
        if self._is_ours:
            self._path.unlink(missing_ok=True)

"""LaunchStatus: how far the launcher is, as it says in a small JSON file.

In: the file's path. Out: the stage, the model's folder once it is known, and whether shards that died will not be started
again. The launcher replaces the file as a whole, so it is either not there or complete.
"""

import dataclasses
import json
import pathlib


@dataclasses.dataclass(frozen=True, slots=True)
class LaunchStatus:
    stage: str
    model_path: pathlib.Path | None
    is_over: bool = False

    @classmethod
    def read(cls, path: str) -> "LaunchStatus | None":
        """None: there is no such file, or none of a launcher."""
        try:
            content = json.loads(pathlib.Path(path).read_text())
            folder = content["model_path"]
            return cls(str(content["stage"]), pathlib.Path(folder) if folder else None, bool(content.get("is_over")))
        except (OSError, ValueError, KeyError, TypeError):
            return None

"""A model's name becomes a local folder before any shard starts.

In: --model-id and a way to start the downloading child. Out: the folder. A folder that is there is used in place;
the child is only asked where something is to be fetched or converted. Knows nothing of the hub.
"""

import time
from collections.abc import Callable
from pathlib import Path

from text_generation_launcher.process import POLL_SECONDS, Child, LaunchError, stop

STOP_GRACE_SECONDS = 5.0


def local_folder(model_id: str) -> Path | None:
    """The folder that `model_id` names, or None where it is a name on the hub. Raises: LaunchError."""
    path = Path(model_id).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise LaunchError(f"--model-id {model_id} is a file: give the folder that it is in")
    if model_id.startswith((".", "/", "~")) or model_id.count("/") > 1:
        raise LaunchError(f"--model-id {model_id}: there is no such folder, and it is no name on the hub")
    return None


def needs_child(folder: Path | None) -> bool:
    """PyTorch's own .bin files may have to be converted, which the server knows how to and remembers."""
    return folder is None or any(folder.glob("*.bin"))


def wait_for_folder(
    start_child: Callable[[], Child],
    stopped: Callable[[], bool],
    hurried: Callable[[], bool],
    meanwhile: Callable[[], None],
) -> Path:
    """The folder that the child prints as its last line.

    Raises: LaunchError, also when `stopped` before that, and what `meanwhile` raises, which is called as long as it takes.
    """
    child = start_child()
    try:
        while child.returncode is None and not stopped():
            meanwhile()
            time.sleep(POLL_SECONDS)
    finally:
        stop([child], STOP_GRACE_SECONDS, hurried)
    if child.returncode != 0 or not child.stdout_lines:
        raise LaunchError(child.describe_end())
    return Path(child.stdout_lines[-1])

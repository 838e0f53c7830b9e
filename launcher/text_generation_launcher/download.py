"""A model's name becomes a local folder before any shard starts.

In: --model-id and a way to start the downloading child. Out: the folder. A folder that is there is used in place;
the child is only asked where something is to be fetched or converted. Knows nothing of the hub, and of GGUF files only that
they become a folder that the child names.
"""

import time
from collections.abc import Callable
from pathlib import Path

from text_generation_launcher.process import POLL_SECONDS, Child, LaunchError, stop

STOP_GRACE_SECONDS = 5.0
GGUF = "*.gguf"
WEIGHTS = ("*.safetensors", "*.bin")


def local_folder(model_id: str) -> Path | None:
    """The folder that `model_id` names, or None where the child has to find it: for GGUF and names on the hub.

    Raises: LaunchError.
    """
    path = Path(model_id).expanduser()
    if path.is_dir():
        return path if any(any(path.glob(weights)) for weights in WEIGHTS) or not any(path.glob(GGUF)) else None
    if path.exists() and not path.match(GGUF):
        raise LaunchError(f"--model-id {model_id} is a file: give the folder that it is in, or a .gguf file")
    if path.exists() or _may_be_on_the_hub(model_id):
        return None
    raise LaunchError(f"--model-id {model_id}: there is no such file or folder, and it is no name on the hub")


def _may_be_on_the_hub(model_id: str) -> bool:
    is_name = model_id.count("/") <= 1 or model_id.endswith(".gguf")
    return is_name and not model_id.startswith((".", "/", "~"))


def needs_child(folder: Path | None) -> bool:
    """PyTorch's own .bin files may have to be converted, which the server knows how to and remembers."""
    return folder is None or any(folder.glob("*.bin"))


def first_stage(model_id: str, folder: Path | None) -> str | None:
    """What the child does, in words; None where it is not needed."""
    if not needs_child(folder):
        return None
    doing = "preparing" if Path(model_id).expanduser().exists() else "downloading"
    return f"{doing} the weights of {model_id}"


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

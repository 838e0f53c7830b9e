"""A model's name becomes a folder with config.json, tokenizer files and safetensors.

In: a folder, which is used in place, or a name on the Hugging Face hub, which is fetched into the hub library's cache.
Out: the folder. A progress bar on standard error. Knows nothing of what the weights mean; conversion is convert.py's.
"""

import os
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors as hub

from text_generation_server.errors import ShardError

UNFINISHED = ".converting"  # in a model's folder: the conversion of its .bin files, until it is done
# "*" matches "/" too: "*/*" leaves out everything below the top level, where exports for other programs lie.
SKIPPED = ["*/*", "*arguments*", "*args*", "*training*", "consolidated*"]
SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN")  # the library itself reads only the first two

# The most special first; {model} and {revision} are filled in.
REMEDIES: tuple[tuple[type[Exception], str], ...] = (
    (hub.GatedRepoError, "{model} is gated: ask for access at https://huggingface.co/{model} and set HF_TOKEN"),
    (
        hub.RepositoryNotFoundError,
        "there is no folder {model} and no such model on the hub; if it is private, set HF_TOKEN",
    ),
    (hub.RevisionNotFoundError, "{model} has no revision {revision}"),
    (hub.HFValidationError, "{model} is neither a folder nor a name that the hub allows"),
    (
        hub.LocalEntryNotFoundError,
        "there is no folder {model}, it is not wholly in the cache, and the hub cannot be reached: check the network, "
        "HF_HUB_OFFLINE and HF_ENDPOINT",
    ),
)


class DownloadError(ShardError):
    pass


def download_weights(model_id: str, revision: str | None) -> Path:
    """The model's folder, with safetensors in it.

    Raises:
        DownloadError: the hub does not have it, or does not give it.
        ModelError: a folder without weights, or with weights that cannot be read.
    """
    folder = Path(model_id).expanduser()
    if not folder.is_dir():
        folder = _from_hub(model_id, revision)
    if not _has_safetensors(folder):
        from text_generation_server.convert import convert  # brings torch, which takes seconds

        convert(folder, folder / UNFINISHED)
    return folder


def _has_safetensors(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) and not (folder / UNFINISHED).exists()


def _from_hub(model_id: str, revision: str | None) -> Path:
    try:
        folder = _fetch(model_id, revision, [*SMALL_FILES, "*.safetensors"])
        return folder if _has_safetensors(folder) else _fetch(model_id, revision, [*SMALL_FILES, "*.bin"])
    except Exception as error:  # errors of the hub's HTTP client come through too, and that client changes with versions
        raise DownloadError(_explain(error, model_id, revision)) from error


def _fetch(model_id: str, revision: str | None, patterns: list[str]) -> Path:
    token = next((os.environ[name] for name in TOKEN_VARIABLES if os.environ.get(name)), None)
    return Path(
        huggingface_hub.snapshot_download(
            model_id, revision=revision, token=token, allow_patterns=patterns, ignore_patterns=SKIPPED
        )
    )


def _explain(error: Exception, model_id: str, revision: str | None) -> str:
    for kind, remedy in REMEDIES:
        if isinstance(error, kind):
            return remedy.format(model=model_id, revision=revision)
    lines = str(error).strip().splitlines()
    return f"cannot download {model_id}: {lines[0] if lines else type(error).__name__}"

"""A model's name becomes a folder with config.json, tokenizer files and safetensors.

In: a folder, which is used in place, a GGUF file, or a name on the Hugging Face hub, which is fetched into the hub library's
cache. Out: the folder. A progress bar on standard error. Knows nothing of what the weights mean; conversion is convert.py's
and gguf.py's.
"""

import os
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors as hub

from text_generation_server import gguf
from text_generation_server.errors import ShardError
from text_generation_server.exclusive import exclusively

UNFINISHED = ".converting"  # in a model's folder: the conversion of its .bin files, until it is done
# "*" matches "/" too: "*/*" leaves out everything below the top level, where exports for other programs lie.
SKIPPED = ["*/*", "*arguments*", "*args*", "*training*", "consolidated*"]
SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
CODE = ["*.py"]
TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN")  # the library itself reads only the first two

# The most special first; {model}, {revision} and {file} are filled in.
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
    (hub.EntryNotFoundError, "{model} has no file {file}"),
)


class DownloadError(ShardError):
    pass


def download_weights(model_id: str, revision: str | None, with_code: bool = False, with_weights: bool = True) -> Path:
    """The model's folder, with safetensors in it unless `with_weights` is false, and of a hub model with its Python files only
    if `with_code`.

    Raises:
        DownloadError: the hub does not have it, or does not give it.
        ModelError: a folder without weights, or with weights that cannot be read.
    """
    path = Path(model_id).expanduser()
    if not path.exists():
        path = _from_hub(model_id, revision, with_code, with_weights)
    if with_weights and path.is_dir() and not _has_safetensors(path):
        path = _converted(path)
    return path if path.is_dir() else gguf.folder_of(path)


def _converted(folder: Path) -> Path:
    """The folder with its .bin files converted, or the one GGUF file that it has instead of them."""
    ggufs = _gguf_names(folder)
    if ggufs and not any(folder.glob("*.bin")):
        return folder / gguf.sole_file(str(folder), ggufs)
    from text_generation_server.convert import convert  # brings torch, which takes seconds

    with exclusively(folder):
        if not _has_safetensors(folder):
            convert(folder, folder / UNFINISHED)
    return folder


def _has_safetensors(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) and not (folder / UNFINISHED).exists()


def _gguf_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.gguf"))


def _from_hub(model_id: str, revision: str | None, with_code: bool, with_weights: bool) -> Path:
    """A folder, or a GGUF file: `org/name/file.gguf`, or the only one of a model that has no other weights."""
    model, file = _split(model_id)
    small = [*SMALL_FILES, *CODE] if with_code else SMALL_FILES
    try:
        if file:
            return _fetch_file(model, file, revision)
        folder = _fetch(model, revision, [*small, "*.safetensors"] if with_weights else small)
        if not with_weights or _has_safetensors(folder):
            return folder
        folder = _fetch(model, revision, [*small, "*.bin"])
        ggufs = [] if any(folder.glob("*.bin")) else _gguf_names_on_hub(model, revision) or _gguf_names(folder)
        return _fetch_file(model, gguf.sole_file(model, ggufs), revision) if ggufs else folder
    except ShardError:
        raise
    except Exception as error:  # errors of the hub's HTTP client come through too, and that client changes with versions
        raise DownloadError(_explain(error, model, revision, file)) from error


def _split(model_id: str) -> tuple[str, str]:
    """The hub's name of the model, and the file of it that is wanted, which may lie in a folder of its own."""
    parts = model_id.split("/", maxsplit=2)
    return ("/".join(parts[:2]), parts[2]) if len(parts) > 2 and model_id.endswith(".gguf") else (model_id, "")


def _fetch(model: str, revision: str | None, patterns: list[str]) -> Path:
    return Path(
        huggingface_hub.snapshot_download(
            model, revision=revision, token=_token(), allow_patterns=patterns, ignore_patterns=SKIPPED
        )
    )


def _fetch_file(model: str, file: str, revision: str | None) -> Path:
    return Path(huggingface_hub.hf_hub_download(model, file, revision=revision, token=_token()))


def _gguf_names_on_hub(model: str, revision: str | None) -> list[str]:
    """Those at the top level; none where the hub cannot be asked, and then the cache has to do."""
    try:
        names = huggingface_hub.list_repo_files(model, revision=revision, token=_token())
    except Exception:  # see _from_hub; that the hub refuses this model was seen before
        return []
    return sorted(name for name in names if name.endswith(".gguf") and "/" not in name)


def _token() -> str | None:
    return next((os.environ[name] for name in TOKEN_VARIABLES if os.environ.get(name)), None)


def _explain(error: Exception, model: str, revision: str | None, file: str) -> str:
    for kind, remedy in REMEDIES:
        if isinstance(error, kind):
            return remedy.format(model=model, revision=revision, file=file)
    lines = str(error).strip().splitlines()
    return f"cannot download {model}: {lines[0] if lines else type(error).__name__}"

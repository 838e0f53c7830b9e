"""Names and folders become folders with safetensors. No network: the hub here is a small server on this machine."""

import hashlib
import http.server
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from text_generation_server.download import DownloadError, download_weights
from text_generation_server.errors import ModelError
from tiny_gguf import save_gguf

COMMIT = "a" * 40
SAFE_FILES = {
    "config.json": b"{}",
    "model.safetensors": b"not read here",
    "pytorch_model.bin": b"not wanted",
    "training_args.bin": b"not wanted",
    "onnx/model.safetensors": b"not wanted",
    "modeling_own.py": b"wanted only when asked for",
}


def _bin_files() -> dict[str, bytes]:
    weights = io.BytesIO()
    torch.save({"a": torch.ones(2)}, weights)
    return {"config.json": b"{}", "pytorch_model.bin": weights.getvalue()}


def _gguf_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return save_gguf(Path(folder) / "tiny.gguf").read_bytes()


REPOSITORIES = {
    "org/safe": SAFE_FILES,
    "org/bin": _bin_files(),
    "org/one-gguf": {"tiny.gguf": _gguf_file(), "README.md": b"not wanted"},
    "org/some-ggufs": {"tiny.Q8_0.gguf": _gguf_file(), "tiny.Q4_0.gguf": b"not wanted", "more/tiny.gguf": _gguf_file()},
}


class FakeHub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download asks for: REPOSITORIES, and `org/gated`, which is gated."""

    tokens: list[str | None]  # set by the fixture: what came as Authorization

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        type(self).tokens.append(self.headers["Authorization"])
        path = urllib.parse.urlsplit(self.path).path
        name = next((name for name in REPOSITORIES if name in path), None)
        if "org/gated" in path:
            self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
        elif name is None:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif not _is_known_revision(path):
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif "/resolve/" in path:
            self._file(REPOSITORIES[name].get(path.split("/", maxsplit=5)[5]))
        elif "/tree/" in path:
            entries = [_tree_entry(file, content) for file, content in REPOSITORIES[name].items()]
            self._answer(200, json.dumps(entries).encode())
        else:
            siblings = [{"rfilename": file} for file in REPOSITORIES[name]]
            self._answer(200, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode())

    def _file(self, content: bytes | None) -> None:
        if content is None:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{_hash(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        self._answer(200, content, headers)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _is_known_revision(path: str) -> bool:
    """What comes after /revision/ or /resolve/, if there is one of them."""
    asked = re.search(r"/(?:revision|resolve)/([^/]+)", path)
    return asked is None or asked[1] in ("main", COMMIT)


def _hash(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _tree_entry(file: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": file, "size": len(content), "oid": _hash(content)}


@pytest.fixture
def hub() -> Iterator[str]:
    FakeHub.tokens = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def download(cache: Path, model_id: str, revision: str | None = None, *options: str, **environment: str) -> str:
    """The folder or the error; `options` are "with code" and "without weights". In a process of its own: the hub library reads
    its environment once, when imported."""
    program = (
        "import sys; from text_generation_server import download\n"
        "options = 'with code' in sys.argv, 'without weights' not in sys.argv\n"
        "try: print(download.download_weights(sys.argv[1], sys.argv[2] or None, *options))\n"
        "except download.ShardError as error: print('Error:', error)\n"
        "print('torch was imported' if 'torch' in sys.modules else '', file=sys.stderr)"
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment = inherited | {"HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"} | environment
    argv = [sys.executable, "-c", program, model_id, revision or "", *options]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "torch was imported" not in done.stderr or "onverting" in done.stderr  # only a conversion waits for it
    return done.stdout.splitlines()[-1]


def test_a_model_is_fetched_without_what_is_not_needed_and_then_found_offline(tmp_path: Path, hub: str) -> None:
    folder = download(tmp_path, "org/safe", HF_ENDPOINT=hub)
    found = {path.name for path in Path(folder).rglob("*") if path.is_file()}
    assert found == {"config.json", "model.safetensors"}
    assert download(tmp_path, "org/safe", HF_HUB_OFFLINE="1") == folder


def test_a_model_that_has_only_bin_files_is_converted_once(tmp_path: Path, hub: str) -> None:
    folder = Path(download(tmp_path, "org/bin", HF_ENDPOINT=hub))
    assert torch.equal(load_file(folder / "model.safetensors")["a"], torch.ones(2))
    converted_at = (folder / "model.safetensors").stat().st_mtime_ns
    assert download(tmp_path, "org/bin", HF_HUB_OFFLINE="1") == str(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == converted_at


def test_code_is_fetched_only_when_asked_for(tmp_path: Path, hub: str) -> None:
    assert not (Path(download(tmp_path, "org/safe", HF_ENDPOINT=hub)) / "modeling_own.py").exists()
    assert (Path(download(tmp_path, "org/safe", COMMIT, "with code", HF_ENDPOINT=hub)) / "modeling_own.py").exists()


def test_without_its_weights_a_model_is_a_few_small_files(tmp_path: Path, hub: str) -> None:
    folder = Path(download(tmp_path, "org/bin", "main", "without weights", HF_ENDPOINT=hub))
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_a_model_that_is_one_gguf_file_is_converted_once(tmp_path: Path, hub: str) -> None:
    folder = download(tmp_path, "org/one-gguf", HF_ENDPOINT=hub)
    assert "model.embed_tokens.weight" in load_file(Path(folder) / "model.safetensors")
    assert download(tmp_path, "org/one-gguf", HF_HUB_OFFLINE="1") == folder


def test_one_gguf_file_of_several_can_be_named(tmp_path: Path, hub: str) -> None:
    model_id = "org/some-ggufs/more/tiny.gguf"
    folder = Path(download(tmp_path, model_id, "main", HF_ENDPOINT=hub, HF_API_TOKEN="hf_secret"))
    assert (folder / "tokenizer.json").is_file()
    assert [path.name for path in folder.parent.parent.rglob("*.gguf")] == ["tiny.gguf"]
    assert "Bearer hf_secret" in FakeHub.tokens
    assert download(tmp_path, model_id, HF_HUB_OFFLINE="1") == str(folder)


def test_every_name_of_the_token_variable_is_heeded(tmp_path: Path, hub: str) -> None:
    download(tmp_path, "org/safe", HF_ENDPOINT=hub, HF_API_TOKEN="hf_secret")
    assert "Bearer hf_secret" in FakeHub.tokens


@pytest.mark.parametrize(
    ("model_id", "revision", "message"),
    [
        ("org/unknown", None, "Error: there is no folder org/unknown and no such model on the hub"),
        ("org/gated", None, "Error: org/gated is gated: ask for access"),
        ("org/safe", "v9", "Error: org/safe has no revision v9"),
        ("org/na--me", None, "Error: org/na--me is neither a folder nor a name"),
        ("org/some-ggufs", None, "Error: org/some-ggufs holds several GGUF files, name one, as in org/some-ggufs/tiny.Q4"),
        ("org/some-ggufs/gone.gguf", None, "Error: org/some-ggufs has no file gone.gguf"),
        ("org/some-ggufs/tiny.Q8_0.gguf", "v9", "Error: org/some-ggufs has no revision v9"),
        ("org/unknown/tiny.gguf", None, "Error: there is no folder org/unknown and no such model on the hub"),
    ],
)
def test_what_the_hub_does_not_give_is_said_in_one_line(
    tmp_path: Path, hub: str, model_id: str, revision: str | None, message: str
) -> None:
    assert download(tmp_path, model_id, revision, HF_ENDPOINT=hub).startswith(message)


def test_no_network_is_said_in_one_line(tmp_path: Path) -> None:
    answer = download(tmp_path, "org/safe", HF_ENDPOINT="http://127.0.0.1:9")
    assert answer.startswith("Error: there is no folder org/safe, it is not wholly in the cache")


def test_a_folder_with_safetensors_is_used_in_place_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "pytorch_model.bin").touch()
    assert download_weights(str(tmp_path), None) == tmp_path
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "training_args.bin").touch()
    with pytest.raises(ModelError, match="holds no weights"):
        download_weights(str(tmp_path), None)


def test_a_conversion_that_was_killed_is_done_again(tmp_path: Path) -> None:
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    (tmp_path / ".converting").mkdir()
    with pytest.raises(ModelError, match="holds no weights"):  # it looks for .bin files again
        download_weights(str(tmp_path), None)


def test_download_errors_are_one_line() -> None:
    with pytest.raises(DownloadError) as error:
        download_weights("not//a//name", None)
    assert "\n" not in str(error.value)

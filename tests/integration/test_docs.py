"""What README.md and docs/ say is so: the Python of docs/grpc.md runs, and files, targets and flags that are named exist."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shard_processes import ShardProcesses
from text_generation_launcher.config import LauncherConfig
from text_generation_launcher.ignored_flags import IgnoredFlags
from text_generation_proto.flags import env_name
from text_generation_router.config import RouterConfig
from text_generation_server.config import ShardConfig
from text_generation_server.model_table import ModelTable

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = ("proto", "router", "server", "launcher", "tests", "models", "benchmarks", "k6", "docs")
EXAMPLE_SECONDS = 60

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.fixture(scope="module")
def examples(shard_processes: ShardProcesses, embedded_model: Path) -> list[str]:
    """The Python blocks of docs/grpc.md, with the sockets of real shards in place of the default ones."""
    arguments = ("--dtype", "float32", "--kv-cache-gib", "0.05")
    text = (ROOT / "docs" / "grpc.md").read_text()
    text = text.replace("/tmp/text-generation-server", shard_processes.start(embedded_model, 1, *arguments))
    text = text.replace("/tmp/text-generation-dev", shard_processes.start(embedded_model, 2, *arguments))
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_python_clients_of_the_grpc_page_run_and_say_the_same(examples: list[str]) -> None:
    one_rank, two_ranks, by_hand, health = map(_output, examples)
    generated = re.search(r"^input 0 ended by length: (.*)$", one_rank, re.MULTILINE)
    assert generated, one_rank
    assert generated[1] in two_ranks
    assert by_hand == f"20 tokens: {generated[1]}\n"
    assert health == "SERVING\n"


@pages
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in _anchors(file), f"{page.name} links to {target}"


@pages
def test_files_that_are_named_exist(page: Path) -> None:
    names = re.findall(r"`(\w[\w./-]+)`", page.read_text())
    known = {path.name for folder in PACKAGES for path in (ROOT / folder).rglob("*.*")} | {path.name for path in ROOT.iterdir()}
    for name in names:
        if name.startswith(tuple(f"{folder}/" for folder in PACKAGES)):
            assert (ROOT / name).exists(), f"{page.name} names {name}"
        elif name.endswith((".py", ".proto", ".md")) and "/" not in name:
            assert name in known, f"{page.name} names {name}"


@pages
def test_make_targets_that_are_named_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = re.findall(r"```.*?```|`[^`\n]+`", page.read_text(), re.DOTALL)
    named = {target for part in code for target in re.findall(r"\bmake ([a-z][a-z0-9-]*)", part)}
    assert named <= targets, f"{page.name} names {named - targets}"


@pages
def test_flags_that_are_named_exist(page: Path) -> None:
    owners = (LauncherConfig, IgnoredFlags, RouterConfig, ShardConfig)
    fields = [field for owner in owners for field in dataclasses.fields(owner)]
    known = {"--" + field.name.replace("_", "-") for field in fields}
    named = set(re.findall(r"`(--[a-z-]+)", page.read_text()))
    assert named - {"--help", "--no-prefix-caching"} <= known


def test_the_table_of_flags_is_the_launchers() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    rows = re.findall(r"^\| `--([a-z-]+)` \| `([A-Z_]+)` \| (.*?) \|", page, re.MULTILINE)
    assert rows == [_row(field) for field in dataclasses.fields(LauncherConfig)]


def test_the_table_of_models_is_the_one_that_the_server_prints() -> None:
    assert (ROOT / "docs" / "models.md").read_text().endswith(ModelTable.read().markdown() + "\n")


@pages
def test_lines_fit(page: Path) -> None:
    """Tables, drawings and commands may be longer: they cannot be broken."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL).splitlines()
    assert [line for line in prose if len(line) > 120 and not line.startswith("|")] == []


def _output(source: str) -> str:
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, timeout=EXAMPLE_SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _anchors(page: Path) -> set[str]:
    """As the usual renderers make them of headings: small letters, hyphens for spaces, other signs left out."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _row(field: dataclasses.Field[object]) -> tuple[str, str, str]:
    default = "unset" if field.default in (None, ()) else str(field.default)
    shown = {"True": "on", "False": "off"}.get(default, default)
    return field.name.replace("_", "-"), env_name(field), shown if shown in ("unset", "on", "off") else f"`{shown}`"

"""Imports only point down: the arrows that docs/architecture.md draws, kept by reading every import of the four packages.

A module is named by its place: "router.engine", "server.layers.linear". Imports inside functions count as well.
"""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("proto", "router", "server", "launcher")
SHARED = {"proto.flags", "proto.logs", "proto.courtesy"}  # on the standard library alone, for everyone
PROTOBUF = {"google", "proto.shard_pb2", "proto.shard_pb2_grpc"}

# Nothing in the first may import anything in the second.
FORBIDDEN = [
    ("router", {"torch", "transformers", "numpy", "server", "launcher"}),
    ("server", {"aiohttp", "msgspec", "router", "launcher"}),
    ("proto", {"router", "server", "launcher"}),
    ("launcher", {"torch", "transformers", "numpy", "aiohttp", "msgspec", "tokenizers", "grpc", *PROTOBUF}),
    ("server.layers", {"server.models", "server.runner", "server.service"}),
    ("server.attention", {"server.models", "server.runner", "server.service"}),
    ("server.models", {"server.batch", "server.sequences", "server.runner", "server.service", "server.generation"}),
    ("server.models.contract", {"transformers"}),
    ("server.parallel", {"server.layers", "server.attention", "server.models", "server.runner", "server.service"}),
]

# In the package of the first, only these modules may import the second.
RESERVED = [
    ("router", {"msgspec"}, {"schema", "sse"}),
    ("router", {"aiohttp"}, {"__main__", "app", "sse", "api"}),
    ("router", {"jinja2"}, {"chat_template"}),
    ("router", {"tokenizers"}, {"tokenizer", "detokenizer"}),
    ("router", {"grpc", *PROTOBUF}, {"shards"}),
    ("launcher", {"router", "server"}, set()),  # but for their config modules
    ("server", {"triton"}, {"attention.paged_kernels", "attention.paged_triton", "layers.fused", "layers.matvec"}),
]

# The router from the top down: a module or folder may import those of the rows below its own.
ROUTER_ROWS = [
    {"__main__"},
    {"app"},
    {"api"},
    {"startup"},
    {"validation", "sse"},
    {"schema"},
    {"engine"},
    {"limits"},
    {"shards", "stream"},
    {"scheduler", "tokenizer", "stopping"},
    {"block_manager", "detokenizer", "pace"},
    {"sequence"},
    {"chat_template", "launch_status"},
    {"errors", "metrics", "config"},
]
ROUTER_FOLDERS = ("router.api", "router.schema")  # within each, any import that leads to no cycle
STANDARD_LIBRARY_ONLY = {
    *("router.scheduler", "router.block_manager", "router.sequence", "router.stopping", "router.errors"),
    *("router.metrics", "router.launch_status", "router.pace"),
    *("router.config", "server.config", "launcher.config", *SHARED),
}


def imports(module: str, path: pathlib.Path, at_once: bool = False) -> list[str]:
    """Every module that `path` imports, ours by their short names; `from a import b` may mean a or a.b, so it is both.
    `at_once`: only those outside of functions."""
    found = []
    tree = ast.parse(path.read_text())
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            found += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name.removeprefix("text_generation_") for name in found]


def _modules() -> dict[str, list[str]]:
    modules = {}
    for package in PACKAGES:
        folder = ROOT / package / f"text_generation_{package}"
        for path in folder.rglob("*.py"):
            parts = [part for part in path.relative_to(folder).with_suffix("").parts if part != "__init__"]
            name = ".".join([package, *parts])
            modules[name] = imports(name, path)
    return modules


MODULES = _modules()


def is_in(name: str, places: set[str]) -> bool:
    return any(name == place or name.startswith(place + ".") for place in places)


def test_all_four_packages_are_read():
    assert all(sum(name.startswith(package + ".") for name in MODULES) > 2 for package in PACKAGES)


@pytest.mark.parametrize(("importer", "forbidden"), FORBIDDEN)
def test_nothing_reaches_across_a_border(importer, forbidden):
    crossings = [
        (name, imported)
        for name in MODULES
        if is_in(name, {importer})
        for imported in MODULES[name]
        if is_in(imported, forbidden)
    ]
    assert crossings == []


@pytest.mark.parametrize(("package", "reserved", "owners"), RESERVED)
def test_what_belongs_to_a_few_modules_stays_with_them(package, reserved, owners):
    borrowers = [
        (name, imported)
        for name in MODULES
        if is_in(name, {package}) and not is_in(name.removeprefix(package + "."), owners)
        for imported in MODULES[name]
        if is_in(imported, reserved) and not is_in(imported, {"router.config", "server.config"})
    ]
    assert [pair for pair in borrowers if pair[1] not in PACKAGES] == []


def test_modules_with_kernels_are_imported_where_they_run_only():
    """A CPU needs no Triton."""
    kernels = next({f"server.{owner}" for owner in owners} for _, reserved, owners in RESERVED if "triton" in reserved)
    folder = ROOT / "server" / "text_generation_server"
    for path in folder.rglob("*.py"):
        name = ".".join(["server", *path.relative_to(folder).with_suffix("").parts])
        at_once = {imported for imported in imports(name, path, at_once=True) if is_in(imported, kernels)}
        assert name in kernels or not at_once, f"{name} imports {at_once} before it is known that they run"


def test_modules_of_the_router_import_downwards_only():
    row_of = {f"router.{module}": number for number, row in enumerate(ROUTER_ROWS) for module in row}
    for name in MODULES:
        place = _place(name)
        for imported in MODULES[name] if name.startswith("router.") else ():
            target = _place(imported)
            if target in row_of and not (place == target and place in ROUTER_FOLDERS):
                assert row_of[place] < row_of[target], f"{name} imports {target}"
            assert place in row_of, f"{name} has no row in the drawing"


@pytest.mark.parametrize("folder", ROUTER_FOLDERS)
def test_within_a_folder_no_imports_lead_in_a_circle(folder):
    inside = {name: {found for found in MODULES[name] if found in MODULES} for name in MODULES if is_in(name, {folder})}
    assert len(inside) > 3
    while leaves := {name for name, found in inside.items() if not found & (inside.keys() - {folder})}:
        inside = {name: found for name, found in inside.items() if name not in leaves}
    assert inside == {}


def _place(name: str) -> str:
    """The module or folder directly in its package."""
    return ".".join(name.split(".")[:2])


@pytest.mark.parametrize("module", sorted(STANDARD_LIBRARY_ONLY & set(MODULES)))
def test_decisions_and_configurations_need_no_more_than_the_standard_library(module):
    for imported in MODULES[module]:
        is_ours = is_in(imported, STANDARD_LIBRARY_ONLY) or imported in PACKAGES
        is_standard = imported.split(".")[0] in sys.stdlib_module_names - {"asyncio"}
        assert is_ours or is_standard, f"{module} imports {imported}"

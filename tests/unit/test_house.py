"""The house rules that can be read off the source: who imports whom, and how long things are."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path

import pytest

import supervisor

ROOT = Path(supervisor.__file__).parent

#: From the top down: what is in a row may import what is in the rows below it.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"app", "doctor"},
    {"web", "rpc"},
    {"house"},
    {"service"},
    {"life", "control", "adoption", "retention", "builder", "pool", "keys"},
    {"following"},
    {"hearing", "expiry"},
    {"vm"},
    {"ending", "link", "relay", "restart", "metrics"},
    {"templates"},
    {"template"},
    {"journal", "store", "launch", "accel", "ports", "limits"},
    {"process", "monitor", "agent", "rundir", "tee", "guest", "listen", "broadcast", "race"},
    {"record"},
    {"machine", "buildinfo", "logs"},
    {"config", "runstate"},
    {"settings"},
    {"errors", "pb"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}

PURE = {"machine", "record", "retention", "runstate", "config", "settings", "errors"}
EVENT_LOOPS = {"trio", "asyncio", "grpc", "trio_asyncio"}
IO = {"os", "socket", "subprocess", "tempfile", "shutil", "io", "threading", "time", "logging"}

IO_CALLS = {
    *("open", "print", "exists", "is_file", "is_dir", "stat", "resolve", "absolute"),
    *("read_text", "read_bytes", "write_text", "mkdir", "cwd"),
}

#: The only modules that may know these libraries.
WRAPPERS = {
    "asyncio": {"monitor", "agent", "rpc"},
    "grpc": {"agent", "rpc"},
    "trio_asyncio": {"monitor", "agent", "rpc", "app"},
    "qemu": {"monitor"},
    "quart": {"web"},
    "quart_trio": {"web"},
    "hypercorn": {"app"},
}

MODULES = sorted(
    path
    for path in ROOT.rglob("*.py")
    if "pb" not in path.relative_to(ROOT).parts and "guest" not in path.relative_to(ROOT).parts
)
ALL = sorted(path for path in ROOT.rglob("*.py") if "pb" not in path.relative_to(ROOT).parts)


def name_of(path: Path) -> str:
    """A module's place in the house: ``rpc``, or ``web`` for all in ``web/``."""
    first = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return "supervisor" if first == "__init__" else first


def shown(path: object) -> str:
    return str(path.relative_to(ROOT)) if isinstance(path, Path) else str(path)


def imports(path: Path) -> set[str]:
    """Every module imported to run, not for types alone, as dotted names."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(path: Path) -> set[str]:
    """The places in the house that a module imports from."""
    inside = (one.split(".") for one in imports(path) if one.startswith("supervisor."))
    return {parts[1] for parts in inside}


def libraries(path: Path) -> set[str]:
    return {one.split(".")[0] for one in imports(path)}


def test_there_is_something_to_read() -> None:
    assert len(MODULES) > 20
    assert "trio" in libraries(ROOT / "vm.py")
    assert "monitor" in ours(ROOT / "link.py")


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_every_module_has_its_floor(path: Path) -> None:
    assert name_of(path) in {*FLOOR, "supervisor"}


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_imports_go_downwards(path: Path) -> None:
    here = name_of(path)
    if here == "supervisor":
        assert not ours(path)
        return
    upwards = {other for other in ours(path) - {here} if FLOOR[other] < FLOOR[here]}
    assert not upwards


def test_no_circles() -> None:
    graph = {name_of(path): set[str]() for path in MODULES}
    for path in MODULES:
        graph[name_of(path)] |= ours(path) - {name_of(path)}
    reach = {name: set(others) for name, others in graph.items()}
    for middle, name in itertools.product(graph, graph):
        if middle in reach[name]:
            reach[name] |= reach[middle]
    assert not {name for name, others in reach.items() if name in others}


def test_web_and_rpc_do_not_know_each_other() -> None:
    assert "web" not in ours(ROOT / "rpc.py")
    for path in (ROOT / "web").glob("*.py"):
        assert "rpc" not in ours(path)


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_modules_know_no_loop_and_do_no_io(name: str) -> None:
    paths = [path for path in MODULES if name_of(path) == name]
    assert paths
    for path in paths:
        assert not libraries(path) & (EVENT_LOOPS | IO)
        assert ours(path) <= PURE
        called = {
            node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call)
        }
        assert not called & IO_CALLS


@pytest.mark.parametrize("library", sorted(WRAPPERS))
def test_library_is_known_to_its_wrappers_alone(library: str) -> None:
    users = {name_of(path) for path in MODULES if library in libraries(path)}
    assert users <= WRAPPERS[library]


@pytest.mark.parametrize("path", ALL, ids=shown)
def test_module_is_not_too_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 400


@pytest.mark.parametrize("path", ALL, ids=shown)
def test_functions_are_not_too_long(path: Path) -> None:
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= 50
    }
    assert not long


@pytest.mark.parametrize("path", ALL, ids=shown)
def test_module_says_what_it_is_for(path: Path) -> None:
    text = path.read_text()
    if text.strip() and path.name != "__main__.py":
        assert ast.get_docstring(ast.parse(text))

"""Arranges the unpacked packages into the guest's file system, which lives in RAM.

/init is PID 1. The reference agent is a Python package. /usr/lib/guest holds the program that
starts the agent, and the kernel modules with their orders.
"""

from __future__ import annotations

import shutil
from importlib import resources
from typing import TYPE_CHECKING

from supervisor.image import libraries, modules
from supervisor.image.command import ImageBuildError, run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from supervisor.image.command import Command

# The agent and its algorithms are Python.
PYTHON = ("python3-minimal", "libpython3-stdlib")
# The reference agent's own gRPC server needs h2. A user's Python agent gets grpcio.
HTTP2 = ("python3-h2",)
GRPC = ("python3-grpcio",)
BUSYBOX = ("busybox-static",)
# The compiler of the reference agent's renewer; it does not stay.
COMPILER = ("tcc",)

GUEST = "usr/lib/guest"
PYTHON_LIBRARY = "usr/lib/python3*"
# The guest has no use for documentation, tests, packaging, windows and terminals.
UNUSED = (
    "boot",
    "var",
    "usr/include",
    "usr/lib/firmware",
    "usr/lib/modules",
    "usr/lib/systemd",
    "usr/lib/valgrind",
    "usr/lib/x86_64-linux-gnu/*/",
    "usr/share",
    "usr/lib/python3/dist-packages/*-info",
)
UNUSED_PYTHON = (
    *("config-*", "ensurepip", "idlelib", "lib2to3", "pydoc*", "test", "tkinter", "turtle*"),
    *("curses", "dbm", "distutils", "doctest.py", "sqlite3", "unittest", "venv", "xmlrpc"),
    *(f"lib-dynload/{name}.*" for name in ("_codecs_*", "*test*", "_curses*", "_dbm", "_sqlite3")),
    *(f"lib-dynload/{name}.*" for name in ("audioop", "nis", "ossaudiodev", "readline", "xx*")),
)
FILES = {
    "etc/passwd": "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/tmp:/bin/sh\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 guest\n",
    "etc/resolv.conf": "",
}
REFERENCE_AGENT = "usr/lib/python3/dist-packages/agent"
START_REFERENCE_AGENT = """#!/usr/bin/python3 -I
from agent.__main__ import main
raise SystemExit(main({arguments}))
"""
START_PYTHON = f"#!/bin/sh\nexec python3 -I /{GUEST}/agent.pyc\n"


def arrange(root: Path, kernel: str, agent: Path | None, agent_arguments: Sequence[str]) -> None:
    """Turns *root*, as the packages left it, into the guest's file system.

    *kernel* is the version of the kernel in *root*; *agent* and *agent_arguments* as for
    :func:`supervisor.image.image.build`. ImageBuildError.
    """
    modules.install(root, kernel, root / GUEST / "modules")
    if agent is None:
        compile_renewer(root)
    for pattern in (*UNUSED, *(f"{PYTHON_LIBRARY}/{name}" for name in UNUSED_PYTHON)):
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in ("dev", "etc/acpi/PWRF", "proc", "run", "sys", "tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name, content in FILES.items():
        (root / name).write_text(content)
    _write_program(root / "init", (resources.files(__package__) / "init").read_text())
    (root / "etc/acpi/PWRF/00000080").symlink_to("/init")
    install_agent(root, agent, agent_arguments)
    compile_python(root)
    libraries.prune(root)
    _link_applets(root)


def packages(agent: Path | None) -> tuple[str, ...]:
    """The packages that the guest is made of."""
    if is_program(agent):
        return (*PYTHON, *BUSYBOX)
    own = (*HTTP2, *COMPILER) if agent is None else GRPC
    return (*PYTHON, *own, *BUSYBOX)


def is_program(agent: Path | None) -> bool:
    """Whether *agent* is an executable of its own rather than Python."""
    return agent is not None and agent.suffix != ".py"


def install_agent(root: Path, agent: Path | None, arguments: Sequence[str]) -> None:
    """Puts *agent*, by default the reference agent, where /init starts it."""
    start = root / GUEST / "agent"
    if agent is None:
        sources = resources.files("supervisor.agent.reference")
        package = root / REFERENCE_AGENT
        package.mkdir(parents=True)
        for source in sources.iterdir():
            if source.name.endswith(".py"):
                (package / source.name).write_bytes(source.read_bytes())
        _write_program(start, START_REFERENCE_AGENT.format(arguments=["--in-guest", *arguments]))
    elif is_program(agent):
        _write_program(start, agent.read_bytes())
    else:
        start.with_suffix(".py").write_bytes(agent.read_bytes())
        _write_program(start, START_PYTHON)


def compile_renewer(root: Path) -> None:
    """Makes the reference agent's renewer, and deletes the compiler."""
    compiler, parts = root / "usr/bin/tcc", root / libraries.DIRECTORY / "tcc"
    source = resources.files(__package__) / "renewer.c"
    options: Command = [f"-B{parts}", "-nostdlib", "-nostdinc", "-static", "-Wall", "-Werror"]
    with resources.as_file(source) as file:
        run(
            "compile the renewer",
            [*_with_libraries_of(root), compiler, *options, file, "-o", root / GUEST / "renewer"],
        )
    for path in (root / "usr/bin").glob("*tcc"):
        path.unlink()


def compile_python(root: Path) -> None:
    """Compiles all Python below *root*, and leaves the library's sources out.

    A traceback then still names the library's files and lines, but does not quote them. Only the
    guest's own interpreter is sure to write bytecode that the guest can load. It runs in place,
    with the guest's own libraries.
    """
    interpreter = next(iter(sorted((root / "usr/bin").glob("python3.*"))), None)
    if interpreter is None:
        raise ImageBuildError("compile Python", (), "the packages hold no usr/bin/python3.*")
    python: Command = [*_with_libraries_of(root), interpreter]
    # Files in the guest never change, so Python need not compare time stamps.
    options: Command = ["-qq", "-b", "--invalidation-mode", "unchecked-hash", "-s", root, "-p", "/"]
    env = {"PYTHONHOME": str(root / "usr"), "PYTHONHASHSEED": "0", "PYTHONPATH": ""}
    library = list(root.glob(PYTHON_LIBRARY))
    command: Command = [*python, "-BSs", "-m", "compileall", *options, *library, root / GUEST]
    run("compile Python", command, env=env)
    for directory in library:
        for source in directory.rglob("*.py"):
            source.unlink()


def _with_libraries_of(root: Path) -> Command:
    """What runs a program of *root* in place, with the libraries there."""
    directory = root / libraries.DIRECTORY
    return [directory / "ld-linux-x86-64.so.2", "--library-path", directory]


def _link_applets(root: Path) -> None:
    """Links each of busybox's commands, except where a package has a program of that name."""
    busybox = root / "usr/bin/busybox"
    if not busybox.exists():
        raise ImageBuildError("find busybox", (), "the packages hold no bin/busybox")
    for applet in run("list busybox's commands", [busybox, "--list"]).split():
        link = root / "usr/bin" / applet
        if not link.exists() and not link.is_symlink():
            link.symlink_to("busybox")


def _write_program(path: Path, content: str | bytes) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(0o755)

"""The documentation holds together, and its closed lists are those of the code."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from supervisor import cli, config, errors
from supervisor.agent.reference.__main__ import make_parser
from supervisor.api.gate import Gate
from supervisor.api.grpc import errors as grpc_errors
from supervisor.api.http import problems
from supervisor.config import CallersConfig, Forwards, RestartPolicy, TemplateUse, successor
from supervisor.fleet.metrics import Now, PlacedRuns
from supervisor.pb import agent_pb2, clone_pb2, compute_pb2, guest_pb2, manager_pb2, vm_pb2
from supervisor.qemu.connection import MonitorState
from supervisor.qemu.process import Usage
from supervisor.runs.metrics import Disk, Gauges, Metrics
from supervisor.state import status
from supervisor.state.record import EndCause, EndMode, EventKind, Phase, Purpose, RelayState
from supervisor.state.status import Reason, Trigger, VmState
from supervisor.state.vm_dir import VmDir
from supervisor.tee.facts import Technology
from supervisor.tee.judge import Layer, Verdict
from supervisor.templates.registry import TemplateState
from supervisor.templates.template import Template
from tests.attack import __main__ as _declares_attacks  # noqa: F401
from tests.attack.defences import DEFENCES, copy_without
from tests.attack.kinds import ATTACKS
from tests.support import pages
from tests.support.routes import application

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = pages.ROOT / "supervisor"
REFERENCE = pages.ROOT / "docs" / "reference"

page = pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)


# --- pages ----------------------------------------------------------------------------------


@page
def test_every_shell_block_says_whether_a_test_runs_it(page: Path) -> None:
    for block in pages.blocks(page):
        where = f"{block.page}, line {block.line}"
        assert block.mark == "run" or block.mark.startswith("not run: "), where


@page
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in pages.links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in pages.anchors(file), target


@page
def test_every_file_of_ours_that_is_named_is_there(page: Path) -> None:
    named = re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.(?:py|proto))`", page.read_text())
    places = (pages.ROOT, PACKAGE)
    assert [one for one in named if not any((place / one).exists() for place in places)] == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, new = set(), [pages.ROOT / "README.md"]
    while new:
        page = new.pop()
        reached.add(page)
        targets = {(page.parent / link.partition("#")[0]).resolve() for link in pages.links(page)}
        new += [target for target in targets - reached if target in pages.PAGES]
    assert set(pages.PAGES) - reached == set()


def test_threats() -> None:
    rows = pages.rows(pages.ROOT / "docs/explanation/security.md", "Threats, and what holds each")
    assert [row[0] for row in rows] == list(DEFENCES)
    files = [pages.ROOT / word for row in rows for word in re.findall(r"`(.+?)`", row[2])]
    assert [file for file in files if not file.exists()] == []


def test_every_defence_is_attacked() -> None:
    assert {one.defence for one in ATTACKS} == set(DEFENCES)


@pytest.mark.parametrize("defence", DEFENCES)
def test_every_defence_can_be_taken_out(defence: str, tmp_path: Path) -> None:
    """The code that makes the defence is still where `scripts/attack --prove` looks for it."""
    copy_without(defence, tmp_path)


# --- lists ----------------------------------------------------------------------------------


def test_settings() -> None:
    _, _, rest = (REFERENCE / "settings.md").read_text().partition("<!-- settings -->")
    table, end, _ = rest.partition("<!-- /settings -->")
    assert end
    assert table.strip() == config.markdown_table()


def test_variables_of_the_successor() -> None:
    page = pages.ROOT / "docs" / "from-the-original.md"
    _, _, rest = page.read_text().partition("<!-- without effect -->")
    table, end, _ = rest.partition("<!-- /without effect -->")
    assert end
    assert table.strip() == successor.markdown_table()


@pytest.mark.parametrize(
    ("heading", "known"),
    [
        ("States", VmState),
        ("Progress of a computation", RelayState),
        ("Whether QEMU answers", MonitorState),
        ("What a VM is for", Purpose),
        ("States of a template", TemplateState),
    ],
)
def test_words_of_states(heading: str, known: Any) -> None:
    assert pages.words(REFERENCE / "states.md", heading) == [str(word) for word in known]


def test_run_states() -> None:
    rows = pages.rows(REFERENCE / "states.md", "RunStates of QEMU")
    shown = {row[0].strip("`"): row[1].strip("`") for row in rows}
    assert shown == {word: str(state) for word, state in status._STATE_OF_RUNSTATE.items()}


def test_transitions() -> None:
    rows = pages.rows(REFERENCE / "states.md", "Transitions")
    shown = {tuple(cell.strip("`") for cell in row[:3]) for row in rows}
    known = {(str(a), str(by), str(b)) for (a, by), b in status._TRANSITIONS.items()}
    by_exit = {row for row in shown if row[1] == Trigger.EXIT}
    assert shown - by_exit == known
    assert {row[0] for row in by_exit} == {str(one) for one in VmState if not one.ended}


@pytest.mark.parametrize(
    ("heading", "known"), [("Kinds", EventKind), ("Causes of an end", EndCause), ("Phases", Phase)]
)
def test_words_of_events(heading: str, known: Any) -> None:
    assert pages.words(REFERENCE / "events.md", heading) == [str(word) for word in known]


def test_layers_of_a_host() -> None:
    assert pages.words(REFERENCE / "http.md", "Host") == [str(layer) for layer in Layer]
    text = (REFERENCE / "http.md").read_text()
    assert all(f"`{word}`" in text for word in (*Technology, *Verdict))


def test_reasons_of_ours() -> None:
    shown = pages.words(REFERENCE / "states.md", "Reasons")
    assert {str(one) for one in Reason} <= set(shown)


def _classes(root: type[errors.SupervisorError]) -> Iterator[type[errors.SupervisorError]]:
    yield root
    for cls in root.__subclasses__():
        yield from _classes(cls)


def test_errors() -> None:
    known = {
        cls.__name__: (
            next(
                str(status.value)
                for kind, status in problems._STATUS.items()
                if issubclass(cls, kind)
            ),
            next(code.name for kind, code in grpc_errors._CODE.items() if issubclass(cls, kind)),
        )
        for cls in _classes(errors.SupervisorError)
        if cls.__module__ == errors.__name__
    }
    rows = pages.rows(REFERENCE / "errors.md", "Errors of the API")
    shown = {row[0].strip("`"): (row[1], row[2].strip("`")) for row in rows}
    assert shown == known


def test_metrics() -> None:
    gauges = Gauges(
        by_state={},
        held=0,
        waiting=0,
        refused={},
        lost=0,
        templates={},
        pool={},
        clones={"restored": 0},
        events={},
        usages={"a": Usage(0, 0, 0, 0)},
        disk=Disk(),
    )
    registry = Metrics(lambda: gauges, {}).registry
    registry.register(Gate(CallersConfig(), Path()).requests)
    registry.register(PlacedRuns())
    registry.register(Now(lambda: defaultdict(float)))
    suffixes = {"counter": "_total", "info": "_info"}  # as they are called where they are read
    known = {
        f"{metric.name}{suffixes.get(metric.type, '')}"
        for metric in registry.collect()
        if not metric.name.startswith("process_")
    }
    assert set(pages.words(REFERENCE / "metrics.md", "Metrics")) == known


def test_routes() -> None:
    known = {
        f"{method} {rule.rule.replace('vm_id', 'id')}"
        for rule in application().url_map.iter_rules()
        for method in rule.methods or ()
        if method not in ("HEAD", "OPTIONS") and rule.endpoint != "static"
    }
    assert set(pages.words(REFERENCE / "http.md", "Routes")) == known


def test_methods() -> None:
    known = {
        f"{service.full_name}/{method.name}"
        for module in (manager_pb2, vm_pb2, agent_pb2, clone_pb2, compute_pb2, guest_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    known |= {"grpc.health.v1.Health/Check"}
    assert set(pages.words(REFERENCE / "grpc.md", "Methods")) == known


def _commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for word, below in command.commands.items():
            yield from _commands(below, f"{name} {word}".strip())
    else:
        yield name, command


def test_commands() -> None:
    known = dict(_commands(cli.main, ""))
    assert set(pages.words(REFERENCE / "command.md", "Commands")) == set(known)
    shared = pages.words(REFERENCE / "command.md", "Options of many commands")
    for name, command in known.items():
        shown = {*pages.words(REFERENCE / "command.md", f"{name}"), *shared}
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.opts[-1] in shown, f"{name} {option.opts[-1]}"


def test_arguments_of_the_agent() -> None:
    known = {one.option_strings[-1] for one in make_parser()._actions} - {"--help"}
    assert set(pages.words(REFERENCE / "agent.md", "Arguments")) >= known


def test_lines_of_the_guests_console() -> None:
    init = (resources.files("supervisor.image") / "init").read_text()
    written = re.findall(r'log "(problem: [^$"]*|[^$"]*)', init)
    shown = pages.words(REFERENCE / "guest.md", "Console")
    assert len(written) > 5
    assert [text for text in written if not any(one.startswith(text) for one in shown)] == []


def _file_names(cls: type, files: Any) -> set[str]:
    properties = [name for name, one in vars(cls).items() if isinstance(one, property)]
    values = [getattr(files, name) for name in properties]
    return {value.name for value in values if isinstance(value, Path)}


def test_files() -> None:
    path = Path("/tmp/x")
    for heading, known in (
        ("Directory of a VM", _file_names(VmDir, VmDir(path))),
        ("Directory of a template", _file_names(Template, Template(path))),
    ):
        shown = pages.words(REFERENCE / "files.md", heading)
        assert known <= set(shown), heading


def test_words_of_requests() -> None:
    http = (REFERENCE / "http.md").read_text()
    for words in (TemplateUse, RestartPolicy, Forwards, EndMode):
        for word in words:
            assert f'"{word}"' in http


@pytest.mark.parametrize(
    "heading", ["From POST /run to the agent and back", "From a QMP event to a reader"]
)
def test_functions_of_the_ways(heading: str) -> None:
    """A list of functions that does not follow the code is worse than none."""
    architecture = pages.ROOT / "docs" / "explanation" / "architecture.md"
    above: list[str] = []  # the source of each function that the present one is below
    for shown, file, _ in pages.rows(architecture, heading):
        level = shown.count("·")
        name = re.sub(r"[·` ]", "", shown)
        source = _source(PACKAGE / file.strip("`"), name.split("."))
        last = name.rpartition(".")[2]
        assert level <= len(above), shown
        assert not level or re.search(rf"\b{last}\b", above[level - 1]), f"who calls {shown}?"
        above[level:] = [source]


def _source(file: Path, names: list[str]) -> str:
    text = file.read_text()
    scope: ast.AST = ast.parse(text)
    for name in names:
        inside = {
            node.name: node
            for node in ast.walk(scope)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        }
        assert name in inside, f"{name} is not in {file}"
        scope = inside[name]
    return ast.get_source_segment(text, scope) or ""

"""What must hold of templates, of what is started from them, and of the pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.case import Case

#: In tmp/: the directory of all templates, and what each of them consists of.
HOME = "templates"
_FILES = {
    *("ram", "state", "overlay.qcow2", "firmware_vars.fd", "clone.qcow2", "manifest.json"),
}


def settle(case: Case) -> None:
    """There is a template, as many VMs wait as should, and nothing half done is left."""
    digest = case.until_template()
    case.until_pool()
    case.until_held()
    # A template that nobody needs any more may be on its way out just now.
    case.wait(
        lambda: not list(_incomplete(case)),
        lambda: f"with the template {digest} ready: {list(_incomplete(case))}",
    )
    failed = {line.get("vm") for line in case.log_lines() if line["message"] == "template: failed"}
    left = [
        row["id"]
        for row in case.ask("GET", "/vms")[1]["vms"]
        if row["purpose"] == "template" and row["id"] not in failed
    ]
    case.expect(not left, f"VMs that templates were to be made of are left: {left}")


def work_on(case: Case) -> None:
    """A run gets what is ready for it, and no clone had a computation before it was renewed."""
    ready = case.until_pool() or case.until_held()
    vm = case.show(case.run() if case.pool else case.run(template="require"))
    if ready:
        case.expect(vm["id"] in ready, f"a run did not get one of those that wait: {ready}")
    else:
        # Were the image replaced just now, the run has waited for the template of the new one.
        digest = case.until_template()
        case.expect(vm["template"] == digest, f"a run is from {vm['template']}, not {digest}")
    case.until_pool()
    for row in case.ask("GET", "/vms")[1]["vms"]:
        _is_no_twin(case, case.show(row["id"]))


def _is_no_twin(case: Case, vm: dict[str, Any]) -> None:
    name = case.computations.get(vm["id"])
    asked = case.place.agents.asked
    if vm["template"] is None or f"run {name}" not in asked:
        return
    before = asked[: asked.index(f"run {name}")]
    case.expect(f"renew {vm['id']}" in before, f"VM {vm['id']} was not renewed before its run")


def on_disk(case: Case) -> list[str]:
    """What is wrong with the templates when no supervisor runs any more."""
    return list(_incomplete(case)) if case.templates else []


def _incomplete(case: Case) -> Iterator[str]:
    home = case.tmp / HOME
    for path in home.iterdir() if home.is_dir() else ():
        found = {file.name for file in path.iterdir()} if path.is_dir() else {"no directory"}
        if found != _FILES:
            yield f"{HOME}/{path.name} has {sorted(found ^ _FILES)} too much, or not"

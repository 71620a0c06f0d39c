"""``doctor``: can VMs start on this host?"""

from __future__ import annotations

import sys

import attrs
import click

from supervisor import doctor as checks
from supervisor.cli.environment import env_file, load_config
from supervisor.cli.output import as_json, print_json, stderr, stdout
from supervisor.doctor import Check, Verdict

_STYLES = {
    Verdict.OK: "green",
    Verdict.NOTE: "dim",
    Verdict.WARN: "yellow",
    Verdict.FAIL: "bold red",
}


@click.command()
@env_file
@as_json
def doctor(env_file: str | None, as_json: bool) -> None:
    """Check whether VMs can start on this host, and say what to do if they cannot.

    The exit code is 1 if a check fails, else 0. Warnings do not count.
    """
    config = load_config(env_file)
    found: list[Check] = []
    with stderr().status("checking"):
        for check in checks.examine(config):
            found.append(check)
            if not as_json:
                _show(check)
    if as_json:
        print_json({"checks": [attrs.asdict(check) for check in found]})
    sys.exit(checks.keeps_vms_from_starting(found))


def _show(check: Check) -> None:
    console = stdout()
    console.print(f"{check.verdict:4}", style=_STYLES[check.verdict], end=" ")
    console.print(f"{check.name:11} {check.detail}")
    if check.advice:
        console.print(f"{'':17}{check.advice}")

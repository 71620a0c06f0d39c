"""Attacks a real supervisor and its real guests, and checks that each attack is refused.

scripts/attack                      every attack; as root in a network of its own
scripts/attack --short              what needs one guest at most, and neither root nor a browser
scripts/attack --list               the attacks, with the defence that holds each
scripts/attack --prove [DEFENCE ..] each attack against a supervisor without its defence

The exit code is 0 if all were refused, with --prove if all got through; 1 if one was not; 2 if one
was not run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import attrs

from tests.attack import (
    agents,
    chromium,
    clients,
    guests,
    hostile,
    limits,
    members,
    network,
    pages,
    strangers,
    table,
    tenants,
    users,
)
from tests.attack.defences import DEFENCES, ROOT, copy_without
from tests.attack.kinds import ATTACKS, Attack, Need, Row, run
from tests.attack.place import Place

#: Declared by being imported.
_ALL = (
    strangers,
    tenants,
    pages,
    limits,
    clients,
    chromium,
    agents,
    users,
    guests,
    hostile,
    members,
)


@attrs.frozen
class Wanted:
    """What the command line asks for.

    :param prove: None, or the defences to take out; empty for all
    """

    short: bool
    prove: list[str] | None
    only: str
    list: bool


def main() -> int:
    wanted = _arguments()
    attacks = [
        one
        for one in ATTACKS
        if (one.short or not wanted.short) and wanted.only in f"{one.origin}: {one.what}"
    ]
    if wanted.list:
        for one in attacks:
            print(f"{one.origin:10}  {one.what}  [{one.defence}]")
        return 0
    network.enter()
    directory = Path(tempfile.mkdtemp(prefix="attack-", dir="/tmp"))
    directory.chmod(0o755)  # the local users' attacks begin in it
    began = time.monotonic()
    # Nothing of ours is left behind then, either.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if wanted.prove is not None:
            code = _prove(wanted.prove or list(DEFENCES), attacks, directory)
            if code != 1:
                shutil.rmtree(directory)
            return code
        rows = _attack(attacks, directory, ROOT)
        for row in rows:
            if row.held is False:
                print(f"!! {row.attack.origin}: {row.attack.what}: {row.met} {row.audit}")
        print(table.text(rows, time.monotonic() - began))
        code = _code(rows)
        if code != 1:
            shutil.rmtree(directory)
        return code
    finally:
        if directory.exists():
            print(f"what is to be looked at is in {directory}", file=sys.stderr)


def _arguments() -> Wanted:
    parser = argparse.ArgumentParser(
        prog="scripts/attack",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--short", action="store_true", help="one guest, no root")
    parser.add_argument("--list", action="store_true", help="run nothing")
    parser.add_argument("--only", default="", metavar="WORDS", help="attacks whose line has these")
    parser.add_argument(
        "--prove", nargs="*", metavar="DEFENCE", choices=[*DEFENCES, []], help="take these out"
    )
    return Wanted(**vars(parser.parse_args()))


def _attack(attacks: list[Attack], directory: Path, source: Path) -> list[Row]:
    with closing(Place(directory, source, has_network=network.is_own())) as place:
        return [_one(one, place) for one in attacks]


def _one(one: Attack, place: Place) -> Row:
    missing = [need for need in one.needs if not _has(need)]
    return Row(one, f"not run: {', '.join(missing)}") if missing else run(one, place)


def _has(need: Need) -> bool:
    if need is Need.ROOT:
        return os.geteuid() == 0
    return shutil.which("chromium") is not None


def _code(rows: list[Row]) -> int:
    if any(row.held is False for row in rows):
        return 1
    return 2 if any(row.held is None for row in rows) else 0


def _prove(defences: list[str], attacks: list[Attack], directory: Path) -> int:
    """Each attack against a build without its defence."""
    code = 0
    for number, defence in enumerate(defences):
        held = [one for one in attacks if one.defence == defence]
        place = directory / str(number)
        place.mkdir()
        place.chmod(0o755)
        copy_without(defence, place)
        for row in _attack(held, place, place):
            if row.held is None:
                code = code or 2
            elif not row.got_through:
                code = 1
            word = "got through" if row.got_through else "STILL REFUSED"
            if row.held is None:
                word = "not proved"
            print(f"{word:13}  {defence}: {row.attack.what}: {row.met}", flush=True)
    return code


if __name__ == "__main__":
    raise SystemExit(main())

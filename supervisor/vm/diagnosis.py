"""Why a guest's agent is not there, by what the guest shows. Pure.

A guest says on its console what it likes; its words can end its own run, and no other.
"""

from __future__ import annotations

import re

import attrs

from supervisor.guest_text import clean

#: What the `/init` of the guest built here writes: docs/reference/guest.md.
_SAID = re.compile(r"^\[guest +[0-9.]+\] (.+)$", re.MULTILINE)
_PROBLEM = "problem: "
_LISTENS = "listens on "
_ENDED = "problem: the agent ended: "

#: How often an agent must end before nobody waits for it any more.
_MOST_ENDS = 3

#: A foreign guest that has come up: a prompt of getty, or systemd's words.
#: Bounded within a line, for a guest may repeat the words.
_IS_UP = re.compile(r"\blogin: *$|Reached target [^\n]{0,100}?(Multi-User|Graphical)", re.MULTILINE)

#: How much of a console is looked at, and how much of a guest's words is told.
CONSOLE_BYTES = 16 * 1024
_WORDS_BYTES = 200


@attrs.frozen
class Finding:
    """What is known of an agent that is not there.

    :ivar certain: whether it will never be there
    """

    why: str
    certain: bool = False


def diagnose(console: str, guest_port: int, *, refused: bool) -> Finding | None:
    """Why the agent is not there; None if nothing tells.

    :param console: the end of what the guest has printed
    :param guest_port: the agent's
    :param refused: whether the guest's kernel turns down connections to that port
    """
    said = _said_since_boot(console)
    problems = [
        one.removeprefix(_PROBLEM)
        for at, one in enumerate(said)
        if one.startswith(_PROBLEM)
        and not one.startswith(_ENDED)
        # The address may have come after all.
        and not ("DHCP" in one and any(" has " in later for later in said[at:]))
    ]
    ends = [one for one in said if one.startswith(_ENDED)]
    if problems:
        return Finding(f"the guest says: {problems[-1]}", certain=True)
    if len(ends) >= _MOST_ENDS:
        return Finding("the agent ends again and again; see the guest's console", certain=True)
    elsewhere = _ports(said)
    if refused and elsewhere and str(guest_port) not in elsewhere:
        shown = ", ".join(elsewhere)
        why = f"the guest listens on port {shown}, and not on the agent's port {guest_port}"
        return Finding(why, certain=True)
    if refused:
        return Finding(f"the guest's network is up, and nothing listens on its port {guest_port}")
    if "up" in said or _IS_UP.search(clean(console, CONSOLE_BYTES, lines=True)):
        return Finding(f"the guest is up, and does not answer on its port {guest_port}")
    return None


def _ports(said: list[str]) -> list[str]:
    """Where the guest listens, if it has said that; else empty."""
    last = next((one for one in reversed(said) if one.startswith(_LISTENS)), "")
    return [word for word in last.removeprefix(_LISTENS).split() if word.isdecimal()]


def how_agent_ended(console: str) -> str:
    """How the agent ended last, in the words of the guest; empty if it does not say."""
    ends = [one for one in _said_since_boot(console) if one.startswith(_ENDED)]
    return ends[-1].removeprefix(_ENDED) if ends else ""


def _said_since_boot(console: str) -> list[str]:
    lines = _SAID.findall(clean(console, CONSOLE_BYTES, lines=True))
    said = [clean(line, _WORDS_BYTES) for line in lines]
    boots = [at for at, line in enumerate(said) if line == "init"]
    return said[boots[-1] :] if boots else said

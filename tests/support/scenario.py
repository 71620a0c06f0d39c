"""What the stand-in for QEMU is to do, written by a test and read by the program."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from pathlib import Path

ALWAYS = 1_000_000


@attrs.frozen(kw_only=True)
class Scenario:
    """One behaviour of the program and of the agent it starts. The default is a good guest."""

    #: QEMU's version: the one whose spellings it takes.
    version: str = "7.2"
    #: Printed on standard error at the start.
    says: str = ""
    #: Exit at once, with this code.
    exits: int | None = None
    #: How many starts fail because somebody else was faster at a port.
    port_races: int = 0
    #: Whether the process of such a start stays when its sockets are closed, until it is killed.
    exits_late: bool = False
    #: Accept QMP's connection, and then: greet, say nothing, or exit.
    greeting: str = "greet"
    #: QMP commands that are answered with an error: its class and text.
    refuses: dict[str, tuple[str, str]] = attrs.field(factory=dict)
    #: QMP commands that are never answered.
    swallows: tuple[str, ...] = ()
    #: Presses of the power button that the guest does not hear.
    deaf_to_powerdown: int = 0
    ignores_quit: bool = False
    ignores_sigterm: bool = False
    #: query-sev's answer.
    sev: dict[str, Any] = attrs.field(factory=lambda: {"enabled": False, "state": "uninit"})

    #: query-sev-capabilities' answer; empty if there is no SEV.
    sev_platform: dict[str, Any] = attrs.field(factory=dict)
    #: What SEV's firmware has measured, in base64; empty if there is none.
    measurement: str = ""
    #: Whether the processor finds that a secret is for another guest.
    refuses_secret: bool = False

    #: ``reference``: the guest's own agent; ``recorder``: keeps what it gets and answers with
    #: its digest; ``held``: the same, once the test says so; ``status``: answers with an error;
    #: ``silent``: never answers; ``deaf``: its port takes connections, and no word comes back;
    #: ``original``: as ``recorder``, and knows nothing of guest.GuestService; ``none``.
    agent: str = "recorder"
    #: Of the recorder's answer, in bytes; 0: as many as the digest has.
    reply_bytes: int = 0
    #: For ``status``: gRPC's name of the code, and the text.
    status: tuple[str, str] = ("INTERNAL", "")
    #: Directory with what the guest's processor says, in files named by the report data in hex;
    #: empty: it has none.
    evidence: str = ""
    #: Whether the agent sends it in pieces, as later versions of the original's do.
    evidence_in_pieces: bool = False
    #: What the guest's console has in it from the start.
    console: str = ""
    #: Directory with ``key.pem``, ``cert.pem`` and ``ca.pem``; empty: no TLS.
    agent_tls: str = ""
    agent_mutual: bool = False

    #: The guest's answer to Prepare and to Renew: ``good``, ``refuse``, ``silence``; of Renew also
    #: ``lost``: the first one does its work, and no answer comes.
    prepare: str = "good"
    #: Whether a copy renews itself as soon as it runs, from what its QEMU has read.
    renews_itself: bool = False
    rehearses: bool = True
    #: Whether the guest has its end of the line open when it is frozen.
    opens_line: bool = True
    #: What a copy says there first; empty: nothing.
    line: str = "r"
    renew: str = "good"
    #: Its answer when it is asked for its health: ``good``, ``silence``.
    health: str = "good"
    #: Its answer when it is asked for its status: ``good``, ``refuse``, ``huge``.
    life: str = "good"
    #: Whether the test is told each time, and so has to listen.
    tells_life: bool = False
    #: What becomes of ``migrate``: ``good``, ``fails``, ``hangs``.
    migration: str = "good"
    #: And of ``migrate-incoming``: ``good``, ``fails``, ``hangs``, ``dies``.
    restore: str = "good"
    #: The agent of a VM that was restored, until it is reset; empty: as ``agent``.
    clones_agent: str = ""

    def write(self, file: Path) -> None:
        draft = file.with_suffix(".new")
        draft.write_text(json.dumps(attrs.asdict(self)))
        draft.replace(file)


def read(file: Path) -> Scenario:
    return Scenario(**json.loads(file.read_text()))

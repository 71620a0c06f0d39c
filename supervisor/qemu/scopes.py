"""Asks for a systemd scope for each QEMU: `supervisor.scopes` makes them, as root.

A request is one packet with a descriptor of the process, the answer another one::

    {"vm": "8f0c…", "memory_bytes": 1879048192, "cpus": 3, "tasks": 146}   and a pidfd
    {"problem": ""}
"""

from __future__ import annotations

import array
import json
import socket
from typing import TYPE_CHECKING

import attrs
import structlog
import trio

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.qemu.groups import Bounds

log = structlog.stdlib.get_logger()

#: systemd makes a scope in some milliseconds.
_ANSWER_S = 10.0
_AGAIN_S = 10.0
#: Of a request, and of an answer.
LONGEST = 4096


def unit_name(vm_id: str) -> str:
    return f"qmp-supervisor-{vm_id}.scope"


class Scopes:
    """The scopes of one supervisor's VMs.

    :param keeper: the socket of who makes them; None if nobody does
    :param most: what each VM may take
    """

    def __init__(self, keeper: Path | None, most: Bounds) -> None:
        self._keeper = keeper
        self._most = most

    async def place(self, vm_id: str, pidfd: int) -> None:
        """Have a QEMU put into its scope, and try for as long as it lives.

        One that is there already stays there. Without a scope it stays in the supervisor's control
        group, and runs all the same.
        """
        told = ""
        while self._keeper and (problem := await self._try(self._keeper, vm_id, pidfd)):
            if problem != told:
                log.warning(
                    "VM has no systemd scope",
                    vm=vm_id,
                    problem=problem,
                    advice="see systemctl status qmp-supervisor-scopes.socket",
                )
            told = problem
            await trio.sleep(_AGAIN_S)

    async def _try(self, keeper: Path, vm_id: str, pidfd: int) -> str:
        """:returns: what was wrong; empty if nothing was"""
        request = json.dumps({"vm": vm_id, **attrs.asdict(self._most)}).encode()
        problem = f"no answer within {_ANSWER_S:g} s"
        with trio.move_on_after(_ANSWER_S):
            try:
                problem = await _ask(keeper, request, pidfd)
            except (OSError, ValueError, LookupError) as error:  # or something else answers
                problem = str(error)
        return problem


async def _ask(keeper: Path, request: bytes, pidfd: int) -> str:
    """:returns: what was wrong; empty if nothing was"""
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        await sock.connect(str(keeper))
        descriptors = array.array("i", [pidfd])
        await sock.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
        answer = await sock.recv(LONGEST)
        return str(json.loads(answer)["problem"]) if answer else "it hung up"

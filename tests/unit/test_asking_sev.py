"""Who asks for the SEV platform of a host, and how many QEMUs that takes."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from supervisor.api.http.host import _Sev
from supervisor.errors import LaunchError, TeeUnavailable
from supervisor.qemu.trial import SevPlatform

PLATFORM = SevPlatform(pdh="p", cert_chain="c", cpu0_id="", cbitpos=51, reduced_phys_bits=1)


class Qemu:
    """Answers, or refuses, and counts how often it was started."""

    def __init__(self) -> None:
        self.started = 0
        self.has_sev = True

    def ask(self) -> SevPlatform:
        self.started += 1
        if self.has_sev:
            return PLATFORM
        raise LaunchError("SEV is not enabled in KVM")


async def test_all_who_ask_at_once_have_one_answer() -> None:
    qemu = Qemu()
    sev, found = _Sev(qemu.ask), list[SevPlatform]()

    async def ask() -> None:
        found.append(await sev.platform())

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
    assert (found, qemu.started) == ([PLATFORM] * 10, 1)


async def test_an_answer_is_for_some_seconds(autojump_clock: trio.testing.MockClock) -> None:
    """A refusal too: a host without SEV would start as many."""
    qemu = Qemu()
    qemu.has_sev = False
    sev = _Sev(qemu.ask)
    for _ in range(3):
        with pytest.raises(TeeUnavailable, match="SEV is not enabled in KVM"):
            await sev.platform()
    assert qemu.started == 1
    qemu.has_sev = True
    await trio.sleep(11)
    assert (await sev.platform(), qemu.started) == (PLATFORM, 2)

"""What a guest's console and its network tell of an agent that is not there."""

from __future__ import annotations

import pytest

from supervisor.vm.diagnosis import Finding, diagnose, how_agent_ended

INIT = "\x1b[2J\x1b[01;01HBdsDxe: starting Boot0001\r\n[guest 3.64] init\r\n"
UP = INIT + "[guest 4.49] eth0 has 10.0.2.15\r\n[guest 4.60] up\r\n"
LOGIN = "Debian GNU/Linux 12 vm ttyS0\r\n\r\nvm login: "
TARGET = "[  OK  ] Reached target \x1b[0;1;39mMulti-User System\x1b[0m.\r\n"
NO_DEVICE = "[guest 9.70] problem: no network device\r\n"
NO_ADDRESS = "[guest 24.00] problem: no address from DHCP within 20 s\r\n"
NO_AGENT = "[guest 4.70] problem: the agent cannot be started: no such file\r\n"
LISTENS = "[guest 24.60] listens on %s\r\n"
ENDED = "[guest 6.10] problem: the agent ended: signal 9, for want of memory\r\n"


@pytest.mark.parametrize(
    ("console", "refused", "certain", "words"),
    [
        (INIT + NO_DEVICE, False, True, "the guest says: no network device"),
        (INIT + NO_ADDRESS, False, True, "the guest says: no address from DHCP within 20 s"),
        (UP + NO_AGENT, True, True, "the guest says: the agent cannot be started: no such file"),
        (UP + ENDED * 3, True, True, "the agent ends again and again"),
        (
            *(UP + LISTENS % "7003 8080", True, True),
            "listens on port 7003, 8080, and not on the agent's port 7002",
        ),
        (UP + LISTENS % "7002", True, False, "nothing listens"),
        (UP + LISTENS % "no port", True, False, "nothing listens"),
        # It has opened the port since.
        (UP + LISTENS % "7003", False, False, "does not answer"),
        (UP + ENDED, True, False, "nothing listens on its port 7002"),
        (UP, True, False, "nothing listens on its port 7002"),
        (UP, False, False, "does not answer on its port 7002"),
        (LOGIN, False, False, "does not answer on its port 7002"),
        (TARGET, False, False, "does not answer on its port 7002"),
        (LOGIN, True, False, "nothing listens on its port 7002"),
        ("", True, False, "nothing listens on its port 7002"),
    ],
)
def test_signs(console: str, refused: bool, certain: bool, words: str) -> None:
    found = diagnose(console, 7002, refused=refused)
    assert found is not None
    assert words in found.why
    assert found.certain is certain


@pytest.mark.parametrize(
    "console",
    [
        "",
        INIT,
        # The address has come after all.
        INIT + NO_ADDRESS + "[guest 31.00] eth0 has 10.0.2.15\r\n",
        # Of the boot before.
        INIT + NO_DEVICE + INIT,
        # Words about words.
        "echo '[guest 1.0] problem: no network device'\r\n",
    ],
    ids=["nothing", "boots", "late address", "booted again", "quoted"],
)
def test_no_sign(console: str) -> None:
    assert diagnose(console, 7002, refused=False) is None


def test_words_of_a_guest_are_bounded_and_harmless() -> None:
    found = diagnose(f"[guest 1] problem: \x1b]0;root\x07{'x' * 5000}\n", 7002, refused=False)
    assert isinstance(found, Finding)
    assert "\x1b" not in found.why
    assert len(found.why) < 300


def test_how_the_agent_ended() -> None:
    assert how_agent_ended(UP + ENDED) == "signal 9, for want of memory"
    assert how_agent_ended(UP + ENDED + INIT) == ""
    assert how_agent_ended("") == ""

"""Where the agent of a VM is reached, by the URL's host and the VM's forwards."""

from __future__ import annotations

import resource

import pytest

from supervisor.agent import channel, client
from supervisor.config import AgentConfig
from supervisor.config.settings import AgentUrl
from supervisor.errors import HostError
from supervisor.qemu.cmdline import Forward


def forwards(address: str = "127.0.0.1") -> list[Forward]:
    ports = ((22, 2222), (9031, 9301), (7002, 7020))
    return [Forward(guest, address, host) for guest, host in ports]


@pytest.mark.parametrize(
    ("url", "address"),
    [
        (AgentUrl("localhost", 7002), "127.0.0.1:7020"),
        (AgentUrl("127.0.0.1", 9031), "127.0.0.1:9301"),
        (AgentUrl("::1", 22), "127.0.0.1:2222"),
        (AgentUrl("localhost", None), "127.0.0.1:7020"),
        (AgentUrl("192.168.122.251", 7002), "192.168.122.251:7002"),
        (AgentUrl("bridge.example", None), "bridge.example:7020"),
        (AgentUrl("fd00::2", 7002), "[fd00::2]:7002"),
        (AgentUrl("fd00::2", None), "[fd00::2]:7020"),
    ],
)
def test_address(url: AgentUrl, address: str) -> None:
    assert channel.address(AgentConfig(url=url), forwards()) == address


def test_forwards_on_every_interface_are_reached_by_the_loopback() -> None:
    config = AgentConfig(url=AgentUrl("localhost", 7002))
    assert channel.address(config, forwards("0.0.0.0")) == "127.0.0.1:7020"


def test_forwards_on_one_interface_are_reached_there() -> None:
    config = AgentConfig(url=AgentUrl("localhost", 7002))
    assert channel.address(config, forwards("10.0.0.1")) == "10.0.0.1:7020"


def test_our_own_want_of_descriptors_is_not_the_agents_end() -> None:
    client._check_own_descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(HostError, match="Too many open files"):
            client._check_own_descriptors()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

"""The rules of a guest's internet, and what is said on a host that cannot have one."""

from __future__ import annotations

import ipaddress
import itertools
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest

from supervisor import config
from supervisor.errors import HostError
from supervisor.qemu import guest_namespace, network
from supervisor.qemu.cmdline import Forward
from tests.support.namespaces import needs_namespaces

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERNET = config.load({"MANAGER_QEMU_GUEST_NETWORK": "internet"}).qemu.net
WITHOUT = config.load({"MANAGER_FORWARDS": "none"}).qemu.net
AGENT = Forward(7002, "127.0.0.1", 7003)


def ports_of(argv: Sequence[str]) -> list[str]:
    return [word for before, word in itertools.pairwise(argv) if before == "--tcp-ports"]


def test_without_internet_the_command_is_qemus() -> None:
    argv = ["qemu-system-x86_64", "-S"]
    assert network.wrapped(config.load({}).qemu.net, [], argv) == argv


def test_forwards_lead_into_the_namespace_and_no_other_port_does() -> None:
    forwards = [Forward(22, "127.0.0.1", 2222), Forward(7002, "127.0.0.1", 7020)]
    argv = network.wrapped(INTERNET, forwards, ["qemu", "-S"])
    assert argv[-3:] == ["--", "qemu", "-S"]
    assert ports_of(argv) == ["127.0.0.1/2222", "127.0.0.1/7020"]
    assert ports_of(network.wrapped(INTERNET, [], ["qemu"])) == ["none"]
    for word in ("--udp-ports", "--tcp-ns", "--udp-ns"):
        assert argv[argv.index(word) + 1] == "none"
    assert "--no-map-gw" in argv


def test_without_forwards_one_socket_leads_to_the_agent() -> None:
    argv = network.wrapped(WITHOUT, [], ["qemu", "-S"], (5, AGENT))
    proxy = ["5", "systemd-socket-proxyd", "127.0.0.1:7003"]
    assert argv[-8:] == ["--", *proxy, "--", "--", "qemu", "-S"]
    assert "pasta" not in argv
    both = attrs.evolve(WITHOUT, guest=config.GuestNetwork.INTERNET)
    argv = network.wrapped(both, [AGENT], ["qemu"], (5, AGENT))
    assert argv[-7:] == ["--", *proxy, "--", "--", "qemu"]
    assert ports_of(argv) == ["none"]


def test_way_of_an_agent_that_dials() -> None:
    """Its QEMU's loopback leads to one socket, whatever else the guest reaches."""
    out = Path("/t/a/out.sock")
    proxy = ["701", "systemd-socket-proxyd", "--connections-max=8", str(out)]
    for environ, ports, within in (
        ({"MANAGER_FORWARDS": "none"}, [], ""),
        ({}, ["127.0.0.1/7020"], 'oifname "lo" accept'),
        ({"MANAGER_QEMU_GUEST_NETWORK": "internet"}, ["127.0.0.1/7020"], "ip daddr"),
    ):
        net = config.load({"MANAGER_AGENT_DIALS": "chunked", **environ}).qemu.net
        forwards = [Forward(7002, "127.0.0.1", 7020)]
        inward = (5, AGENT) if net.forwards is config.Forwards.NONE else None
        argv = network.wrapped(net, forwards, ["qemu"], inward, out)
        assert argv[-6:] == [*proxy, "--", "qemu"]
        assert ports_of(argv) == ports
        rules = argv[argv.index(network.NAME_SERVER) - 1]
        assert within in rules
        assert ("policy drop" in rules) == bool(ports)
        assert ("ip daddr" in rules) == (net.guest is config.GuestNetwork.INTERNET)


def test_rules_by_their_order() -> None:
    """The host's own come first, then what is allowed, then what is private."""
    allowed = [ipaddress.ip_network("10.1.2.0/24"), ipaddress.ip_network("fd00:1::/64")]
    lines = network.rules(allowed, ["93.0.0.2", "2a00:77::2"]).splitlines()
    text = [line.strip() for line in lines]
    order = [
        "ip daddr 93.0.0.2 drop",
        "ip6 daddr 2a00:77::2 drop",
        "ip daddr 10.1.2.0/24 accept",
        "ip6 daddr fd00:1::/64 accept",
        "meta nfproto ipv4 accept",
        "ip6 daddr 2000::/3 accept",
    ]
    assert [line for line in text if line in order] == order
    assert any("169.254.0.0/16" in line and line.endswith("drop") for line in text)
    assert "type filter hook output priority 0; policy drop;" in text


@pytest.mark.parametrize(
    ("net", "program", "package"),
    [
        (INTERNET, "pasta", "passt"),
        (INTERNET, "nft", "nftables"),
        (WITHOUT, "ip", "iproute2"),
        (WITHOUT, "systemd-socket-proxyd", "systemd"),
    ],
)
def test_missing_program_is_named_with_its_package(
    net: config.NetConfig,
    program: str,
    package: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for other in {"pasta", "nft", "systemd-socket-proxyd", "ip", "setpriv"} - {program}:
        (tmp_path / other).write_text("#!/bin/sh\n")
        (tmp_path / other).chmod(0o755)
    monkeypatch.setattr(guest_namespace, "search_path", lambda: str(tmp_path))
    with pytest.raises(HostError, match=f"there is no {program} on the PATH") as caught:
        network.check(net, None)
    assert caught.value.advice == f"install the package {package}"


@pytest.mark.parametrize("net", [INTERNET, WITHOUT], ids=["internet", "no forwards"])
def test_host_without_namespaces_is_told_how_to_have_them(
    net: config.NetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "unshare: Operation not permitted\nit did not start"
    failing = ["sh", "-c", f"echo '{lines}' >&2; exit 1"]
    monkeypatch.setattr(network, "wrapped", lambda *_: failing)
    with pytest.raises(HostError, match="Operation not permitted; it did") as caught:
        network.check(net, None)
    assert "user namespaces" in caught.value.advice


@needs_namespaces
def test_namespace_without_forwards_has_no_way_out() -> None:
    network.check(WITHOUT, None)
    argv = network.wrapped(WITHOUT, [], ["sh", "-c", "grep CapBnd /proc/self/status; ip -br link"])
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    assert "CapBnd:\t0000000000000000" in done.stdout
    others = [line for line in done.stdout.splitlines()[1:] if "DOWN" not in line]
    assert [line.split()[0] for line in others] == ["lo"]


@needs_namespaces
def test_this_host_has_one() -> None:
    """Rules, a way out, no capability, no door but the forward, and nothing left afterwards."""
    look = "grep CapBnd /proc/self/status; ls /sys/class/net; cat /etc/resolv.conf"
    argv = network.wrapped(INTERNET, [], ["sh", "-c", look])
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    assert "CapBnd:\t0000000000000000" in done.stdout
    assert f"nameserver {network.NAME_SERVER}" in done.stdout
    assert "lo" in done.stdout.split()

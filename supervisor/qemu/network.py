"""What a guest can reach, and who reaches it: `GuestNetwork` and `Forwards` of the settings.

With ``internet`` each QEMU runs in a network namespace of its own. Packets leave it through pasta,
after rules for nft have dropped those that are meant for the host or for private networks. QEMU
makes the forwards inside the namespace, and pasta leads the host's ports there. So 10.0.2.2, which
stands for QEMU's own loopback, leads to nothing but the VM's own forwards.

Without forwards each QEMU is in such a namespace too, and no port leads there. What connects to the
socket in the VM's directory is passed on to the forward that QEMU has made to the agent.

If the agent dials the supervisor, its QEMU is in such a namespace whatever the guest reaches. What
connects to `DIALLED` there, the guest alone, is passed on to another socket in the VM's directory.
"""

from __future__ import annotations

import ipaddress
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from supervisor.config import Forwards, GuestNetwork
from supervisor.errors import HostError
from supervisor.qemu import confine, guest_namespace, users

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from supervisor.config import NetConfig
    from supervisor.config.settings import Network
    from supervisor.qemu.cmdline import Forward
    from supervisor.qemu.users import User

#: Stands for the host's resolver in a namespace. The block is for benchmarks: RFC 2544.
NAME_SERVER = "198.18.0.53"

#: What an agent dials, as its guest sees it: QEMU's user network has 10.0.2.2 stand for the
#: loopback of QEMU's namespace. Forwards have ports above, unless the settings say otherwise.
_DIALLED_PORT = 701
DIALLED = f"10.0.2.2:{_DIALLED_PORT}"
#: Connections of one agent at once. It has two.
_MOST_DIALLED = 8

#: Programs that a namespace needs, and Debian's packages of them.
_PROGRAMS = {"ip": "iproute2", "setpriv": "util-linux"}
_PROGRAMS_OF_PACKETS = {"pasta": "passt", "nft": "nftables"}
_PROXY = "systemd-socket-proxyd"
_PROGRAMS_OF_SOCKETS = {_PROXY: "systemd"}

#: The rule for connections within a namespace. Answers to forwarded ones are that as well.
_LOOPBACK = 'oifname "lo" accept'

#: What is not the internet, or leads back to the host by translation: IANA's registry of special
#: addresses, and multicast.
_NOT_PUBLIC_4 = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
    *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
)
#: Within 2000::/3. Nothing outside it is public.
_NOT_PUBLIC_6 = ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")

_QUESTION_TIMEOUT_S = 20.0
#: The last line is this program's own; why, a program that it started has said before.
_LINES_SAID = 3


def danger(net: NetConfig) -> HostError | None:
    """What guests reach that they should not; None if there is nothing. It stops no VM."""
    if net.guest is not GuestNetwork.OPEN:
        return None
    return HostError(
        "MANAGER_QEMU_GUEST_NETWORK=open: every guest reaches all that this host reaches, the"
        " supervisor, the host's loopback and other VMs' forwards included",
        advice="set MANAGER_QEMU_GUEST_NETWORK=none, unless you trust the guests",
    )


def check(net: NetConfig, user: User | None) -> None:
    """Whether this host can give guests this network. Blocking.

    :param user: that QEMU runs as; None for the supervisor's own
    :raises HostError: if it cannot
    """
    if not _is_apart(net):
        return
    programs, wanted = _PROGRAMS, []
    advice = (
        "allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone and"
        " kernel.apparmor_restrict_unprivileged_userns)"
    )
    if net.guest is GuestNetwork.INTERNET:
        wanted.append("MANAGER_QEMU_GUEST_NETWORK=internet")
    if net.forwards is Forwards.NONE:
        wanted.append("forwards=none")  # of a run, or of MANAGER_FORWARDS
    if net.dials:
        wanted.append("MANAGER_AGENT_DIALS")
    if _has_packets(net):
        programs = programs | _PROGRAMS_OF_PACKETS
        advice += " and let this user open /dev/net/tun"
    if net.forwards is Forwards.NONE or net.dials:
        programs = programs | _PROGRAMS_OF_SOCKETS
    problem = " and ".join(wanted)
    for program, package in programs.items():
        if shutil.which(program, path=guest_namespace.search_path()) is None:
            detail = f"{problem}, but there is no {program} on the PATH"
            raise HostError(detail, advice=f"install the package {package}")
    try:
        done = subprocess.run(
            [*users.run_as(user), *wrapped(net, (), ("true",))],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=confine.environment(),
            check=False,
            timeout=_QUESTION_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise HostError(f"{problem}, but a network namespace cannot be tried: {error}") from error
    if done.returncode:
        said = "; ".join(done.stderr.splitlines()[-_LINES_SAID:]) or f"exit code {done.returncode}"
        raise HostError(f"{problem}, but no network namespace can be made: {said}", advice=advice)


def wrapped(
    net: NetConfig,
    forwards: Iterable[Forward],
    argv: Sequence[str],
    agent: tuple[int, Forward] | None = None,
    dialled: Path | None = None,
) -> list[str]:
    """The command that runs QEMU with this network. Reads the host's addresses.

    :param forwards: those that QEMU makes
    :param agent: without forwards of the host: the descriptor of a listening socket, and the one of
        QEMU's forwards that its connections are passed on to
    :param dialled: the socket that connections to `DIALLED` are passed on to
    """
    if not _is_apart(net):
        return list(argv)
    program = [sys.executable, "-I", str(Path(guest_namespace.__file__))]
    within, pasta, inward, outward = "", [], [], []
    if _has_packets(net):
        reaches = net.guest is GuestNetwork.INTERNET
        within = rules(net.guest_allow, own_addresses()) if reaches else _table([_LOOPBACK])
        pasta = _pasta(() if agent else forwards)
    if agent:
        listener, forward = agent
        inward = [str(listener), _PROXY, f"{forward.host_address}:{forward.host_port}"]
    if dialled:
        most = f"--connections-max={_MOST_DIALLED}"
        outward = [str(_DIALLED_PORT), _PROXY, most, str(dialled)]
    return [*program, within, NAME_SERVER, *pasta, "--", *inward, "--", *outward, "--", *argv]


def _is_apart(net: NetConfig) -> bool:
    """Whether QEMU needs a namespace of its own."""
    return net.guest is GuestNetwork.INTERNET or net.forwards is Forwards.NONE or net.dials


def _has_packets(net: NetConfig) -> bool:
    """Whether something must carry packets into QEMU's namespace, or out of it."""
    is_reached = net.dials and net.forwards is Forwards.HOST
    return net.guest is GuestNetwork.INTERNET or is_reached


def _pasta(forwards: Iterable[Forward]) -> list[str]:
    ports = [f"{one.host_address}/{one.host_port}" for one in forwards] or ["none"]
    pasta = ["pasta", "--foreground", "--quiet", "--config-net", "--no-map-gw"]
    pasta += ["--dns-forward", NAME_SERVER]
    pasta += [word for port in ports for word in ("--tcp-ports", port)]
    return [*pasta, "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none"]


def own_addresses() -> list[str]:
    """The host's addresses, without scopes."""
    return sorted(
        {
            address.address.partition("%")[0]
            for addresses in psutil.net_if_addrs().values()
            for address in addresses
            if address.family in (socket.AF_INET, socket.AF_INET6)
        }
    )


def rules(allowed: Iterable[Network], own: Iterable[str]) -> str:
    """A script for nft: what may leave a namespace. Answers to forwarded connections use ``lo``.

    :param allowed: networks that may be reached though they are private
    :param own: the host's addresses, which may not be reached though they may be public
    """
    lines = [_LOOPBACK]
    lines.append(f"ip daddr {NAME_SERVER} udp dport 53 accept")
    # Without these there is no IPv6 at all: the namespace's own search for its router.
    lines.append(
        "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } accept"
    )
    for address in own:
        lines.append(f"{_family(ipaddress.ip_address(address).version)} daddr {address} drop")
    lines += [f"{_family(network.version)} daddr {network} accept" for network in allowed]
    lines.append(f"ip daddr {{ {', '.join(_NOT_PUBLIC_4)} }} drop")
    lines.append("meta nfproto ipv4 accept")
    lines.append(f"ip6 daddr {{ {', '.join(_NOT_PUBLIC_6)} }} drop")
    lines.append("ip6 daddr 2000::/3 accept")
    return _table(lines)


def _table(lines: Iterable[str]) -> str:
    rules = ["type filter hook output priority 0; policy drop;", *lines]
    body = "".join(f"    {line}\n" for line in rules)
    return f"table inet guest {{\n  chain out {{\n{body}  }}\n}}\n"


def _family(version: int) -> str:
    return "ip" if version == 4 else "ip6"

"""Chooses host ports for forwards: the next free port from each base, or all from one range.

`PortPool` keeps the VMs of one supervisor apart. Another program can still take a free port before
QEMU binds it; QEMU then says so, and the VM reserves other ports.
"""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from supervisor.errors import PortsTaken
from supervisor.qemu.cmdline import Forward

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from supervisor.config import NetConfig


#: How many one VM has, if it has forwards.
PORTS_OF_A_VM = 3

#: Any that a program without privileges may use.
_FIRST_IN_NAMESPACE = 7001


class PortPool:
    """The host ports of all VMs of one supervisor."""

    def __init__(self, net: NetConfig) -> None:
        self._net = net
        self._reserved: set[int] = set()

    @contextmanager
    def reserve(self, avoid: Iterable[int] = ()) -> Iterator[tuple[Forward, ...]]:
        """Three forwards whose host ports are reserved for one VM until the context ends.

        :param avoid: ports that QEMU has just found taken by another program
        :raises PortsTaken: if there are not enough free ports
        """
        taken = set(avoid)
        mine: list[Forward] = []
        try:
            for base, guest_port in self._wanted():
                port = self._next_free(base, taken)
                self._reserved.add(port)
                mine.append(Forward(guest_port, self._net.host_fwd_addr, port))
            yield tuple(mine)
        finally:
            self._reserved.difference_update(forward.host_port for forward in mine)

    @contextmanager
    def hold(self, forwards: Iterable[Forward]) -> Iterator[None]:
        """Reserve the ports that an adopted VM already uses, until the context ends."""
        mine = {forward.host_port for forward in forwards}
        self._reserved |= mine
        try:
            yield
        finally:
            self._reserved -= mine

    def _wanted(self) -> Iterator[tuple[int, int]]:
        net = self._net
        bases = (net.host_fwd_1, net.host_fwd_2, net.host_fwd_3)
        for base, guest_port in zip(bases, _guest_ports(net), strict=True):
            yield (net.host_fwd_range.first if net.host_fwd_range else base), guest_port

    def _next_free(self, base: int, taken: set[int]) -> int:
        last = self._net.host_fwd_range.last if self._net.host_fwd_range else 65535
        for port in range(base, last + 1):
            if port in self._reserved or port in taken:
                continue
            if is_free(self._net.host_fwd_addr, port):
                return port
        setting = "RANGE" if self._net.host_fwd_range else "1, _2 and _3"
        raise PortsTaken(
            f"no host port from {base} to {last} is free on {self._net.host_fwd_addr}",
            advice=f"set MANAGER_QEMU_HOST_FWD_{setting} to other ports",
        )


def in_namespace(net: NetConfig) -> tuple[Forward, ...]:
    """The forwards of a QEMU whose loopback is its own: there all ports are free."""
    numbered = enumerate(_guest_ports(net), _FIRST_IN_NAMESPACE)
    return tuple(Forward(guest_port, "127.0.0.1", port) for port, guest_port in numbered)


def _guest_ports(net: NetConfig) -> tuple[int, int, int]:
    return net.guest_fwd_1, net.guest_fwd_2, net.guest_fwd_3


def is_free(address: str, port: int) -> bool:
    """Whether QEMU could bind this TCP port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            # Two sockets may be bound with SO_REUSEADDR until one of them listens.
            probe.listen(1)
        except OSError:
            return False
    return True

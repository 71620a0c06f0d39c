"""What a guest can reach: `supervisor.config.GuestNetwork`. This says what a setting opens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from supervisor.config import GuestNetwork
from supervisor.errors import HostError

if TYPE_CHECKING:
    from supervisor.config import NetConfig


def danger(net: NetConfig) -> HostError | None:
    """What guests reach that they should not; None if there is nothing. It stops no VM."""
    if net.guest is not GuestNetwork.OPEN:
        return None
    return HostError(
        "MANAGER_QEMU_GUEST_NETWORK=open: every guest reaches all that this host reaches, the"
        " supervisor, the host's loopback and other VMs' forwards included",
        advice="set MANAGER_QEMU_GUEST_NETWORK=none, unless you trust the guests",
    )

"""What the supervisor found out about this host when it started."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from supervisor.qemu.cmdline import Accel


@attrs.frozen
class Host:
    """
    :param qemu: path of QEMU's binary
    :param accel: what of the hardware VMs use
    """

    qemu: str
    accel: Accel

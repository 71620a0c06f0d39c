"""What cloning does to the guest as a whole. Nothing else in the agent reaches beyond its process.

On any other machine than a guest of ours, whose PID 1 is /init, this would set that one's clock.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time

# init makes these, once the network has an address and once no module is left to load.
SETTLED = ("/run/address", "/run/loaded")
# There while the guest waits for its renewal: an agent that crashes meanwhile is started again.
WAITS = "/run/waits-for-renewal"
POLL_S = 0.05

RNDADDENTROPY = 1 << 30 | 8 << 16 | ord("R") << 8 | 3  # _IOW('R', 3, two ints)
RNDRESEEDCRNG = ord("R") << 8 | 7  # _IO('R', 7)


class Guest:
    """The guest that this process runs in, as root. Its methods raise OSError."""

    def wait_until_settled(self, deadline: float) -> bool:
        """Whether init has brought everything up before *deadline*, a monotonic time."""
        while not all(map(os.path.exists, SETTLED)):
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_S)
        return True

    def waits(self) -> bool:
        """Whether an agent before this one has had the guest wait for its renewal."""
        return os.path.exists(WAITS)

    def keep_waiting(self) -> None:
        _write(WAITS, b"")

    def wait_no_more(self) -> None:
        os.unlink(WAITS)

    def drop_caches(self) -> None:
        """Frees what the kernel can do without, and puts free memory together."""
        for name, value in (("drop_caches", b"3"), ("compact_memory", b"1")):
            _write(f"/proc/sys/vm/{name}", value)

    def set_clock(self, unix_time_ns: int) -> None:
        time.clock_settime_ns(time.CLOCK_REALTIME, unix_time_ns)

    def add_entropy(self, entropy: bytes) -> None:
        """Has the kernel draw all further random numbers from *entropy* as well."""
        pool = struct.pack("=ii", 8 * len(entropy), len(entropy)) + entropy
        device = os.open("/dev/urandom", os.O_WRONLY)
        try:
            fcntl.ioctl(device, RNDADDENTROPY, bytearray(pool))
            fcntl.ioctl(device, RNDRESEEDCRNG)
        finally:
            os.close(device)

    def rename(self, hostname: str, machine_id: str) -> None:
        """*machine_id* is 32 hexadecimal digits, as systemd's machine-id(5) has them."""
        socket.sethostname(hostname)
        _write("/etc/hostname", f"{hostname}\n".encode())
        _write("/etc/machine-id", f"{machine_id}\n".encode())
        hosts = f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {hostname}\n"
        _write("/etc/hosts", hosts.encode())


def _write(path: str, content: bytes) -> None:
    # open() would do the same with twice the work, which counts while a copy is waited for.
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(file, content)
    finally:
        os.close(file)

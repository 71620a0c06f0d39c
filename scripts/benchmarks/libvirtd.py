"""libvirt, with a daemon of its own that sees nothing of the host and leaves nothing there.

The daemon runs as `qemu:///session` does, in namespaces of user, mounts and processes: so no
root is needed, its files are all in one directory, and when `unshare` ends, the kernel ends
whatever it has started. /dev in there has no kvm: libvirt takes a /dev/kvm that opens for one
that runs guests. Linux: user_namespaces(7), pid_namespaces(7); libvirt: daemons.html.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from scripts.benchmarks import guest
from scripts.benchmarks.bare_qemu import make_disk, pci_devices

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Debian's; python3-libvirt belongs to this one.
_PYTHON = "/usr/bin/python3"
_PATIENCE_S = 60.0
_POLL_S = 0.05

_UNSHARE = (
    *("unshare", "--user", "--map-user=1000", "--map-group=1000", "--keep-caps", "--mount"),
    *("--pid", "--fork", "--kill-child", "--mount-proc"),
)

#: The first process there: it makes /dev and reaps what the daemon's QEMUs leave.
_INIT = """\
set -eu
dev=$1
shift
mount -t tmpfs -o mode=755 none "$dev"
for name in null zero full random urandom tty; do
    : >"$dev/$name"
    mount --bind "/dev/$name" "$dev/$name"
done
mkdir "$dev/pts" "$dev/shm"
mount --rbind /dev/pts "$dev/pts"
mount --rbind /dev/shm "$dev/shm"
ln -s pts/ptmx "$dev/ptmx"
ln -s /proc/self/fd "$dev/fd"
mount --rbind "$dev" /dev
"$@" &
wait $!
"""

#: No sandbox beyond QEMU's own, which the supervisor's QEMU has too, and no second daemon.
_QEMU_CONF = """\
namespaces = []
security_driver = "none"
cgroup_controllers = []
stdio_handler = "file"
"""

#: The devices are where the supervisor's command line has them. What libvirt has no element for
#: is said in QEMU's words: memory slots without NUMA, forwarded ports.
_DOMAIN = """\
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>bench</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu current='{vcpus}'>64</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <loader readonly='yes' type='pflash'>{code}</loader>
    <nvram template='{variables}'>{directory}/firmware_vars.fd</nvram>
  </os>
  <features><acpi/><apic/></features>
  <cpu mode='maximum'><topology sockets='1' dies='1' cores='64' threads='1'/></cpu>
  <on_reboot>destroy</on_reboot>
  <devices>
    <emulator>{emulator}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='{directory}/overlay.qcow2'/>
      <target dev='sda' bus='scsi'/>
      <boot order='1'/>
    </disk>
    <controller type='scsi' index='0' model='virtio-non-transitional'>
      <driver iommu='on'/>
      <address type='pci' domain='0' bus='0' slot='1' function='0'/>
    </controller>
    <controller type='usb' model='none'/>
    <video>
      <model type='none'/>
    </video>
    <serial type='file'><source path='{directory}/serial.log'/></serial>
    {balloon}
    <panic model='isa'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-m'/>
    <qemu:arg value='{memory}M,slots=5,maxmem=30G'/>
    <qemu:arg value='-netdev'/>
    <qemu:arg value='user,id=nic{forwards}'/>
    <qemu:arg value='-device'/>
    <qemu:arg
      value='virtio-net-pci,disable-legacy=on,iommu_platform=true,netdev=nic,romfile=,addr=2'/>
  </qemu:commandline>
</domain>
"""
_BALLOON = """\
<memballoon model='virtio' freePageReporting='on'>
      <address type='pci' domain='0' bus='0' slot='3' function='0'/>
    </memballoon>"""
_NO_BALLOON = "<memballoon model='none'/>"


class Libvirt:
    """A daemon, and a program that asks it."""

    def __init__(self, directory: Path, program: subprocess.Popen[str]) -> None:
        self._directory = directory
        self._program = program
        self._emulator = str(shutil.which("qemu-system-x86_64"))
        self.version: str = self._call("prepare", emulator=self._emulator, machine="q35")["version"]

    def _call(self, name: str, **arguments: Any) -> dict[str, Any]:
        """What libvirt answers.

        :raises Unmeasured: if that is an error, or nothing
        """
        assert self._program.stdin
        assert self._program.stdout
        with suppress(BrokenPipeError):
            self._program.stdin.write(json.dumps({"call": name, **arguments}) + "\n")
            self._program.stdin.flush()
        heard, _, _ = select.select([self._program.stdout], [], [], _PATIENCE_S)
        line = self._program.stdout.readline() if heard else ""
        answer: dict[str, Any] = json.loads(line) if line else {"error": "no answer"}
        if "error" in answer:
            raise guest.Unmeasured(f"libvirt, {name}: {answer['error']}")
        return answer

    def start(self, argv: Sequence[str], forwards: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Define a domain and start it: moments on ``time.perf_counter``.

        The disk is there before the clock starts; libvirt copies the firmware's variables.

        :param argv: the supervisor's, which the domain is to resemble
        :param forwards: of host ports, which are free
        """
        make_disk(self._directory / "overlay.qcow2")
        code, variables = guest.firmware()
        xml = _DOMAIN.format(
            memory=guest.MEMORY_MB,
            vcpus=guest.VCPUS,
            code=code,
            variables=variables,
            directory=self._directory,
            emulator=self._emulator,
            balloon=_BALLOON if any("virtio-balloon" in one for one in argv) else _NO_BALLOON,
            forwards="".join(
                f",hostfwd=tcp:{one['host_address']}:{one['host_port']}-:{one['guest_port']}"
                for one in forwards
            ),
        )
        return self._call("start", xml=xml)

    def query_status_rate(self, seconds: float, callers: int) -> float:
        """Questions a second, of each caller one after another, by ``qemuMonitorCommand``."""
        return float(self._call("rate", seconds=seconds, callers=callers)["rate"])

    def pci_devices(self) -> list[str]:
        return pci_devices(self._call("pci")["pci"])

    def end(self) -> None:
        """End the domain without asking its guest, and forget it."""
        self._call("end")
        for name in ("overlay.qcow2", "serial.log", "firmware_vars.fd"):
            (self._directory / name).unlink(missing_ok=True)


@contextmanager
def opened(directory: Path) -> Iterator[Libvirt]:
    """A daemon of our own, gone on leaving, with all that it started.

    :param directory: not there yet; removed on leaving
    :raises Unmeasured: if there is no libvirt, or it cannot be run
    """
    daemon = shutil.which("libvirtd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if not daemon:
        raise guest.Unmeasured("libvirtd is not installed (libvirt-daemon-driver-qemu)")
    modules = [_PYTHON, "-c", "import libvirt, libvirt_qemu"]
    if not Path(_PYTHON).exists() or subprocess.run(modules, capture_output=True).returncode:
        raise guest.Unmeasured(f"{_PYTHON} has no module libvirt (python3-libvirt)")
    directory.mkdir()
    try:
        with _daemon(daemon, directory) as socket, _program(socket) as program:
            yield Libvirt(directory, program)
    finally:
        shutil.rmtree(directory)


@contextmanager
def _daemon(daemon: str, directory: Path) -> Iterator[Path]:
    """The daemon's socket, once it listens."""
    homes = {f"XDG_{name}": str(directory / name.lower()) for name in _HOMES}
    for home in homes.values():
        Path(home).mkdir(mode=0o700)
    configuration = Path(homes["XDG_CONFIG_HOME"]) / "libvirt"
    configuration.mkdir()
    (configuration / "qemu.conf").write_text(_QEMU_CONF)
    own = directory / "libvirtd.conf"
    own.write_text('auth_unix_rw = "none"\n')
    (directory / "dev").mkdir()
    command = [*_UNSHARE, "sh", "-c", _INIT, "init", str(directory / "dev")]
    with (directory / "libvirtd.log").open("w+") as log:
        process = subprocess.Popen(
            [*command, daemon, "--config", str(own)],
            env=os.environ | homes | {"HOME": str(directory)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C is for us: we end it when we have ended its domain.
            start_new_session=True,
        )
        try:
            socket = Path(homes["XDG_RUNTIME_DIR"]) / "libvirt" / "libvirt-sock"
            deadline = time.monotonic() + _PATIENCE_S
            while not socket.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    said = (log.read().strip().splitlines() or ["nothing"])[-1]
                    raise guest.Unmeasured(
                        f"libvirtd does not run in namespaces of its own: {said}"
                    )
                time.sleep(_POLL_S)
            yield socket
        finally:
            _end(process)


_HOMES = ("CONFIG_HOME", "CACHE_HOME", "DATA_HOME", "STATE_HOME", "RUNTIME_DIR")


def _end(unshare: subprocess.Popen[bytes]) -> None:
    """End `unshare`, and with it its only child, the first process of a namespace of processes.

    The kernel ends the others there before that child can be reaped.
    """
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(unshare.pid).children():
            child.kill()
    with suppress(subprocess.TimeoutExpired):
        unshare.wait(_PATIENCE_S)
    unshare.kill()
    unshare.wait()


@contextmanager
def _program(socket: Path) -> Iterator[subprocess.Popen[str]]:
    calls = Path(__file__).with_name("libvirt_calls.py")
    program = subprocess.Popen(
        [_PYTHON, str(calls), f"qemu:///session?socket={socket}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield program
    finally:
        program.kill()
        program.communicate()

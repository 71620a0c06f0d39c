"""Builds a guest image from the distribution's packages alone.

The guest is one kernel and one initramfs that runs from RAM: no state, no root file system. The
same two files serve a UEFI disk (guest.qcow2) and a direct boot (vmlinuz, initrd.img); the command
line for the latter is in manifest.json. Debian 12 is tested; Debian 13 and Ubuntu
24.04 were tried once.
"""

from __future__ import annotations

import io
import os
import tempfile
import time
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING

from supervisor.agent.reference.__main__ import make_parser
from supervisor.image import disk, packages, rootfs
from supervisor.image.command import ImageBuildError, require_tools, run
from supervisor.image.cpio import write_cpio
from supervisor.image.libraries import ELF
from supervisor.image.manifest import NAME, File, Manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from supervisor.image.command import Command

DISK = "guest.qcow2"
KERNEL = "vmlinuz"
INITRAMFS = "initrd.img"
# panic=-1: a panic reboots at once, after the kernel has told QEMU of it through pvpanic.
# no_timer_check: Linux panics if it believes that its timer does not tick. Under emulation, with
# five guests booting for each of the host's processors, four of thirty did. Under KVM Linux does
# not check either.
# vt.global_cursor_default and nowatchdog let an idle guest sleep: no blinking cursor, no watchdog
# of processors.
# Not tsc=reliable, though it saves time: on such a busy host Linux often measures the counter's
# frequency wrong, and with this option it would not notice.
# cgroup.memory: Linux would rewrite its own code at the first cgroup of an algorithm, and for
# sockets at each. Emulated processors were seen to run the old code for ever (QEMU 7.2): the guest
# hung. What the kernel needs for an algorithm is not counted then; its processes are.
# psi and lsm: nothing in the guest asks how scarce a resource is, or loads a security policy; each
# switch between processes and each call of the kernel would do its part for them all the same.
COMMAND_LINE = (
    "console=ttyS0 quiet panic=-1 no_timer_check vt.global_cursor_default=0 nowatchdog"
    " cgroup.memory=nosocket,nokmem psi=0 lsm="
)
ZSTD_LEVEL = 19


def build(
    output: Path,
    *,
    agent: Path | None = None,
    agent_arguments: Sequence[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Makes the directory *output*: guest.qcow2, vmlinuz, initrd.img, manifest.json.

    *agent* runs in the guest in place of the reference agent: a Python file (\\*.py, which may
    import grpcio) or a program that needs no libraries. *agent_arguments* are the reference
    agent's. *progress* gets one line for each step.

    An image already in *output* is replaced at the end, in one step. If the build fails, nothing
    is left behind. ImageBuildError says why.
    """
    output = output.absolute()
    check(output, agent, agent_arguments)
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as name:
            work = Path(name)
            # apt downloads as a user of its own, which needs access.
            work.chmod(0o755)
            manifest = make(work, agent, agent_arguments, progress)
            replace(output, work / "image", work / "old")
    except OSError as error:
        raise ImageBuildError("write the image", (), str(error)) from error
    progress(f"{output} is ready")
    return manifest


def check(output: Path, agent: Path | None, agent_arguments: Sequence[str]) -> None:
    """ImageBuildError: something that the build needs is missing, or *output* holds other files."""
    require_tools()
    if agent_arguments:
        _check_arguments(agent, agent_arguments)
    if output.exists() and not (output / NAME).is_file() and not _is_empty(output):
        raise ImageBuildError("start", (), f"{output} exists and holds no image: choose another")
    if agent is not None and not agent.is_file():
        raise ImageBuildError("start", (), f"the agent {agent} is not a file")
    if agent is not None and rootfs.is_program(agent):
        _check_program(agent)


def _check_arguments(agent: Path | None, arguments: Sequence[str]) -> None:
    if agent is not None:
        raise ImageBuildError("start", (), "arguments are for the reference agent alone")
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            make_parser().parse_args(arguments)
    except SystemExit:
        why = said.getvalue().strip().rpartition("error: ")[2]
        raise ImageBuildError("start", (), f"the agent's arguments: {why}") from None


def _check_program(agent: Path) -> None:
    with agent.open("rb") as program:
        start = program.read(4)
    if start == ELF:
        if "INTERP" in run("look at the agent", ["readelf", "-lW", agent]):
            why = "needs shared libraries, which the guest does not have: link it statically"
            raise ImageBuildError("start", (), f"the agent {agent} {why}")
    elif not start.startswith(b"#!"):
        raise ImageBuildError("start", (), f"the agent {agent} is neither a program nor a .py file")


def make(
    work: Path,
    agent: Path | None,
    agent_arguments: Sequence[str],
    progress: Callable[[str], None],
) -> Manifest:
    """Makes the image in *work*/image."""
    image = work / "image"
    image.mkdir()
    progress("downloading and unpacking packages")
    versions = packages.fetch(rootfs.packages(agent), work)
    root = work / "root"
    kernel, kernel_version = find_kernel(root)
    kernel.rename(image / KERNEL)
    stub = (root / "usr/lib/systemd/boot/efi/linuxx64.efi.stub").rename(work / "stub")
    progress("arranging the guest's files")
    rootfs.arrange(root, kernel_version, agent, agent_arguments)
    now = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    progress("packing the initramfs")
    pack(root, image / INITRAMFS, work / "initrd.cpio")
    progress("making the disk")
    efi_file = work / "BOOTX64.EFI"
    disk.write_efi_file(stub, image / KERNEL, image / INITRAMFS, COMMAND_LINE, efi_file)
    disk.write_disk(efi_file, image / DISK, now)
    manifest = Manifest(
        agent="program" if rootfs.is_program(agent) else "python" if agent else "reference",
        # Another agent may not serve CloneService, and copies would have one key for TLS.
        clone_safe=agent is None and "--tls" not in agent_arguments,
        renews_itself=agent is None and "--tls" not in agent_arguments,
        kernel=kernel_version,
        command_line=COMMAND_LINE,
        built_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        packages=versions,
        files={name: File.of(image / name) for name in (DISK, KERNEL, INITRAMFS)},
    )
    manifest.write(image)
    return manifest


def find_kernel(root: Path) -> tuple[Path, str]:
    """The newest kernel's file and its version. ImageBuildError: there is none."""
    boot, beside_modules = root / "boot", root / "usr/lib/modules"
    found = {file: file.name.removeprefix("vmlinuz-") for file in boot.glob("vmlinuz-*")}
    found |= {file: file.parent.name for file in beside_modules.glob("*/vmlinuz")}  # Debian 14
    if not found:
        why = f"there is none in {boot}, nor beside its modules"
        raise ImageBuildError("find the kernel", (), why)
    return max(found.items(), key=lambda item: item[1])


def pack(root: Path, initramfs: Path, archive: Path) -> None:
    """*root* as a compressed initramfs. *archive* is scratch space."""
    with archive.open("wb") as file:
        write_cpio(root, file, mtime=0)
    command: Command = ["zstd", "-q", f"-{ZSTD_LEVEL}", "-T0", "--rm", archive, "-o", initramfs]
    run("compress the initramfs", command)


def replace(output: Path, image: Path, old: Path) -> None:
    """Moves *image* to *output*; an image that is there moves to *old*."""
    image.chmod(0o755)
    if output.exists():
        for path in output.iterdir():
            if path.name not in (DISK, KERNEL, INITRAMFS, NAME):
                path.rename(image / path.name)  # a user's own file, another image perhaps
        output.rename(old)
    image.rename(output)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())

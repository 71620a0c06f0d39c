"""A VM's directory ``tmp/<id>/``: every file name in it, and what is made there before QEMU.

Overlays and variables are made by blocking calls in a worker thread.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from supervisor.errors import HostError, ImageError, LaunchError
from supervisor.qemu.firmware import check_pair, read_descriptors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from supervisor.config import DiskConfig, FirmwareConfig

#: A unix socket's path, with its end, is a ``char[108]``: unix(7).
MAX_SOCKET_PATH = 107

#: The file of tmp/ whose lock a supervisor holds.
LOCK = "lock"

#: Connections to QMP that may wait: ours, and one that a killed supervisor left behind.
_QMP_BACKLOG = 4

_TAIL_BYTES = 4096

#: Of a guest's last line, so many are told.
_LINE_CHARACTERS = 200

#: A terminal's control sequences: ECMA-48, 5.4.
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")

#: It reads a header and writes 200 kB: some milliseconds.
_QEMU_IMG_S = 60.0


#: qemu-img may take its time; no more of them than help each other are to hold a thread.
preparers = trio.CapacityLimiter(4)


@attrs.frozen
class VmDir:
    """The files of one VM. Nobody else spells their names."""

    path: Path

    @property
    def qmp_socket(self) -> Path:
        return self.path / "qmp.sock"

    @property
    def overlay(self) -> Path:
        return self.path / "overlay.qcow2"

    @property
    def firmware_vars(self) -> Path:
        return self.path / "firmware_vars.fd"

    @property
    def ram(self) -> Path:
        """The guest's memory, where a template is made of it."""
        return self.path / "ram"

    @property
    def state(self) -> Path:
        """The devices' state, likewise."""
        return self.path / "state"

    @property
    def record(self) -> Path:
        """What is known of the VM: `store` writes and reads it."""
        return self.path / "vm.json"

    @property
    def record_draft(self) -> Path:
        """The next record, while it is being written."""
        return self.path / "vm.json.new"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def computation(self) -> Path:
        """The computation, for as long as it may yet have to be sent."""
        return self.path / "computation"

    @property
    def reply(self) -> Path:
        """The agent's answer. Not in the record, which is written again and again."""
        return self.path / "reply"

    @property
    def serial_log(self) -> Path:
        return self.path / "serial.log"

    @property
    def qemu_log(self) -> Path:
        return self.path / "qemu.log"

    async def prepare(
        self, disk: DiskConfig, firmware: FirmwareConfig, ram_bytes: int | None = None
    ) -> None:
        """Put the VM's own variables and disk into the directory, and memory if that is a file.

        :raises LaunchError: ImageError, FirmwareError, or what the system said of the directory
        """
        prepare = partial(_prepare, self, disk, firmware, ram_bytes)
        await trio.to_thread.run_sync(prepare, limiter=preparers)

    async def read_computation(self) -> bytes:
        """:raises OSError:"""
        return await trio.to_thread.run_sync(self.computation.read_bytes)

    async def keep_reply(self, reply: str) -> None:
        """Put the agent's answer into the directory, for good.

        :raises LaunchError: if there is no room for it
        """
        try:
            await trio.to_thread.run_sync(_write_synced, self.reply, reply.encode())
        except OSError as error:
            raise LaunchError(
                f"{self.reply}: {error.strerror}; the agent's answer could not be kept"
            ) from error

    def read_reply(self) -> str | None:
        """The agent's answer, if there is one. Blocking."""
        try:
            return self.reply.read_text(encoding="utf-8")
        except (OSError, ValueError):
            return None

    def clear(self, *, disks: bool) -> None:
        """Remove what an ended VM needs no more. Blocking; what is not there is no matter."""
        files = [self.qmp_socket, self.computation]
        if disks:
            files += [self.overlay, self.firmware_vars, self.ram, self.state]
        for file in files:
            with suppress(OSError):
                file.unlink(missing_ok=True)

    @contextmanager
    def listen_qmp(self) -> Iterator[socket.socket]:
        """The socket QEMU will answer on, listening already. Closing it leaves QEMU's copy.

        Whoever connects before QEMU is up waits in the backlog for the greeting, so nobody
        has to look whether the path is there yet.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            self.qmp_socket.unlink(missing_ok=True)  # of an attempt before this one
            listener.bind(str(self.qmp_socket))
            listener.listen(_QMP_BACKLOG)
            yield listener

    def cut_logs(self, limit: int) -> None:
        """Keep what the guest and QEMU print from filling the host.

        A log over the limit becomes ``….1``, in the place of the one before, and begins anew.
        What is written just then may be lost.
        """
        for log in (self.serial_log, self.qemu_log):
            with suppress(FileNotFoundError):
                if (size := log.stat().st_size) > limit:
                    with log.open("rb") as old:
                        old.seek(size - limit)
                        log.with_name(f"{log.name}.1").write_bytes(old.read(limit))
                    os.truncate(log, 0)

    def log_tail(self, lines: int = 10) -> str:
        """The last lines QEMU wrote, or nothing."""
        return "\n".join(_last_lines(self.qemu_log)[-lines:])

    def what_was_printed(self) -> str:
        """Where a guest's console is read, and its last line: for errors of one that is silent.

        What a guest prints may be meant for the terminal of whoever reads it.
        """
        lines = [_ESCAPES.sub("", line) for line in _last_lines(self.serial_log)]
        printed = ["".join(filter(str.isprintable, line)).strip() for line in lines]
        last = next((line for line in reversed(printed) if line), "")
        words = f", last {last[:_LINE_CHARACTERS]!r}" if last else ", nothing so far"
        return f"what the guest printed is in {self.serial_log}{words}"


def _last_lines(file: Path) -> list[str]:
    try:
        with file.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return log.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return []


def _write_synced(file: Path, content: bytes) -> None:
    with file.open("wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())


def check_tmp(tmp: Path) -> None:
    """Make tmp/ if it is missing, and see that a VM can live in it.

    :raises HostError: if it cannot be written to, or its sockets' paths would be too long
    """
    longest = VmDir(tmp / ("f" * 36)).qmp_socket
    if len(os.fsencode(longest)) > MAX_SOCKET_PATH:
        raise HostError(
            f"{tmp} is too long a path: a VM's QMP socket, {longest}, must fit into"
            f" {MAX_SOCKET_PATH} bytes",
            advice="set MANAGER_QEMU_TMP_FILE_LOC to a shorter one",
        )
    try:
        tmp.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(tmp / LOCK, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise HostError(
            f"{tmp} cannot be written to ({error.strerror})",
            advice="set MANAGER_QEMU_TMP_FILE_LOC to a directory that can",
        ) from error


def _prepare(
    vm_dir: VmDir, disk: DiskConfig, firmware: FirmwareConfig, ram_bytes: int | None
) -> None:
    try:
        check_pair(firmware, read_descriptors())
        shutil.copyfile(firmware.vars_file, vm_dir.firmware_vars)
        make_overlay(disk, vm_dir.overlay)
        if ram_bytes is not None:
            # Ours, though a QEMU that is root's writes to it.
            os.close(os.open(vm_dir.ram, os.O_RDWR | os.O_CREAT, 0o600))
            os.truncate(vm_dir.ram, ram_bytes)
        vm_dir.serial_log.touch()  # ours, though a QEMU that is root's writes to it
    except OSError as error:
        raise LaunchError(
            f"{error.filename or vm_dir.path}: {error.strerror}; the files of VM"
            f" {vm_dir.path.name} could not be made"
        ) from error


def check_image(disk: DiskConfig) -> None:
    """See that the base image is there.

    :raises ImageError:
    """
    if not disk.file.exists():
        raise ImageError(
            f"base image {disk.file} is missing",
            advice="build one with 'qmp-supervisor image build', or set MANAGER_QEMU_DISK_IMG_FILE",
        )


def make_overlay(disk: DiskConfig, overlay: Path) -> None:
    """A qcow2 file that reads through to the base image and takes all writes.

    :raises ImageError: if the image is missing, or is not what its format says
    """
    check_image(disk)
    command = [
        *("qemu-img", "create", "-q", "-f", "qcow2"),
        *("-F", disk.format, "-b", str(disk.file.resolve()), str(overlay)),
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_QEMU_IMG_S
        )
    except subprocess.TimeoutExpired as error:
        raise ImageError(
            f"qemu-img has not read {disk.file} in {_QEMU_IMG_S:g} s",
            advice="see to its file system",
            argv=command,
        ) from error
    except FileNotFoundError as error:
        raise LaunchError(
            "qemu-img is not on the PATH", advice="install the package qemu-utils"
        ) from error
    if done.returncode:
        raise ImageError(
            f"base image {disk.file} cannot be used as {disk.format}",
            advice=f"check it with 'qemu-img check {disk.file}', and MANAGER_QEMU_DISK_IMG_FORMAT",
            argv=command,
            exit_code=done.returncode,
            log_tail=done.stderr.strip(),
        )

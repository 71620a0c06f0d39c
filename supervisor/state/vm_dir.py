"""A VM's directory ``tmp/<id>/``: its file names, and the files that QEMU needs at its start."""

from __future__ import annotations

import os
import shutil
import socket
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import attrs
import structlog
import trio

from supervisor.config import RestartPolicy
from supervisor.errors import ImageError, SupervisorError
from supervisor.guest_text import last_lines
from supervisor.qemu.firmware import check_pair, read_descriptors
from supervisor.state import file_errors
from supervisor.state.disk import base_image, check_image, make_overlay
from supervisor.state.files import remove, sync, write_synced
from supervisor.state.log_file import LogFile
from supervisor.state.results import Results

if TYPE_CHECKING:
    from supervisor.config import DiskConfig, FirmwareConfig
    from supervisor.qemu.users import User
    from supervisor.state.record import BaseImage, RunOptions

log = structlog.stdlib.get_logger()

#: The longest path of a unix socket in bytes: a ``char[108]`` with its final NUL, unix(7).
MAX_SOCKET_PATH = 107

#: Connections that may wait. QEMU serves one QMP client at a time, and a killed supervisor may have
#: left another.
_BACKLOG = 4

#: How much of a log's end is read for its last lines.
_TAIL_BYTES = 4096

#: How many of a guest's last lines an error shows, and how much of each.
_CONSOLE_LINES = 5
_LINE_BYTES = 200

#: How many threads prepare directories at once. More of them would only slow each other down.
preparers = trio.CapacityLimiter(4)


@attrs.frozen
class VmDir:
    """The paths of one VM's files. Their names are nowhere else."""

    path: Path

    @property
    def qmp_socket(self) -> Path:
        return self.path / "qmp.sock"

    @property
    def agent_socket(self) -> Path:
        """Leads to the agent, if no port of the host does."""
        return self.path / "rpc.sock"  # a longer name would make some paths of tmp/ too long

    @property
    def dialled_socket(self) -> Path:
        """Where an agent comes out that dials the supervisor."""
        return self.path / "out.sock"  # no longer than the others

    @property
    def console_socket(self) -> Path:
        """Where QEMU serves the serial console, once somebody has opened it."""
        return self.path / "tty.sock"  # no longer than the others

    @property
    def agent_address(self) -> str:
        """The same, as gRPC has it."""
        return f"unix:{quote(os.fsencode(self.agent_socket))}"

    @property
    def overlay(self) -> Path:
        return self.path / "overlay.qcow2"

    @property
    def firmware_vars(self) -> Path:
        return self.path / "firmware_vars.fd"

    @property
    def ram(self) -> Path:
        """The guest's memory, if the VM becomes a template."""
        return self.path / "ram"

    @property
    def state(self) -> Path:
        """The devices' state, if the VM becomes a template."""
        return self.path / "state"

    @property
    def session(self) -> tuple[Path, Path]:
        """Certificate and session of an owner who measures the launch, in base64."""
        return self.path / "dh-cert.b64", self.path / "session.b64"

    @property
    def shares(self) -> tuple[Path, Path]:
        """The directories that the guest reads over 9p, if it does: environment, certificates."""
        return self.path / "environment", self.path / "certificates"

    @property
    def record(self) -> Path:
        """The VM's record, which `store` writes and reads."""
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
        """The computation, until it need not be sent any more."""
        return self.path / "computation"

    @property
    def reply(self) -> Path:
        """The agent's answer. Not in the record, which is rewritten at each change."""
        return self.path / "reply"

    @property
    def results(self) -> Results:
        return Results(self.path)

    @property
    def secret(self) -> Path:
        """See `secret`. The file is the supervisor's alone."""
        return self.path / "secret"

    @property
    def renewal(self) -> Path:
        """What a copy learns of itself, until its QEMU has read it."""
        return self.path / "renewal"

    @property
    def serial_log(self) -> Path:
        return self.path / "serial.log"

    @property
    def qemu_log(self) -> Path:
        return self.path / "qemu.log"

    async def prepare(
        self, disk: DiskConfig | None, firmware: FirmwareConfig, ram_bytes: int | None = None
    ) -> BaseImage | None:
        """Make the VM's firmware variables and disk, in a worker thread.

        :param disk: None for a VM without one
        :param ram_bytes: the size of the memory file, if the VM has its memory in a file
        :returns: the image that the disk lies on; None without a disk
        :raises ImageError: if the base image is missing or cannot be used
        :raises FirmwareError: if a firmware file is missing, or CODE and VARS are no pair
        :raises LaunchError: if a file cannot be written
        """
        prepare = partial(_prepare, self, disk, firmware, ram_bytes)
        return await trio.to_thread.run_sync(prepare, limiter=preparers)

    def give_to(self, user: User | None) -> None:
        """Let a user pass through the directory and have the files that QEMU opens. Blocking.

        The directory stays the supervisor's: QEMU cannot put a link there.

        :param user: None if QEMU runs as the supervisor's user, and needs nothing
        :raises OSError: if the owner of a file cannot be changed
        """
        if user is None:
            return
        open_to_group(self.path, user.gid)
        files = [self.overlay, self.firmware_vars, self.serial_log, self.ram]
        for file in (*files, self.renewal, *self.session):
            with suppress(FileNotFoundError):
                os.chown(file, user.uid, user.gid, follow_symlinks=False)
        for share in filter(Path.exists, self.shares):
            # QEMU lists it for its guest, and puts nothing there.
            os.chown(share, -1, user.gid)
            share.chmod(0o750)
            for file in share.iterdir():
                os.chown(file, user.uid, user.gid, follow_symlinks=False)

    def take_back(self) -> None:
        """Undo `give_to`, whoever had the files. The user may be another VM's soon. Blocking."""
        if os.geteuid() != 0:
            return  # then nobody was given anything
        with suppress(OSError):
            open_to_group(self.path, None)
            for file in self.path.iterdir():
                os.chown(file, 0, 0, follow_symlinks=False)

    def given_to(self) -> int | None:
        """The id of the user who has the VM's files; None if there are none. Blocking."""
        with suppress(OSError):
            return self.serial_log.lstat().st_uid
        return None

    async def check_base(self, base: BaseImage | None) -> None:
        """Check that the image that the disk lies on is still the one that it was made on.

        On another image the disk would be a mixture of two file systems.

        :param base: None if nobody knows which it was
        :raises ImageError: if it is another file now, or gone
        """
        if base is None:
            return
        whose = f"the disk of VM {self.path.name} was made on {base.path} ({base})"
        advice = "put the earlier file back at this path; give a new image a new name"
        try:
            now = await trio.to_thread.run_sync(base_image, Path(base.path))
        except OSError as error:
            raise ImageError(f"{whose}, and now: {error.strerror}", advice=advice) from error
        if now != base:
            raise ImageError(f"{whose}, and another file is there now ({now})", advice=advice)

    async def check_firmware(self, firmware: FirmwareConfig) -> None:
        """Check that the VM's variables still belong to the firmware, which may be another by now.

        :raises FirmwareError: if they do not, or the firmware is gone
        """
        mine = attrs.evolve(firmware, vars_file=self.firmware_vars)
        await trio.to_thread.run_sync(lambda: check_pair(mine, read_descriptors()))

    def have_computation(self, computation: bytes, restart: RestartPolicy) -> None:
        """Blocking.

        :param restart: if the VM boots again after a reboot of the host, it and the secret must be
            there then, whole: else its agent would get another one, and be open to everybody
        :raises OSError: if it cannot be written
        """
        self.computation.write_bytes(computation)
        if restart is not RestartPolicy.NEVER:
            sync(self.computation)
            sync(self.secret)

    async def read_computation(self) -> bytes:
        """:raises SupervisorError: if the file is missing or cannot be read"""
        try:
            return await trio.to_thread.run_sync(self.computation.read_bytes)
        except OSError as error:
            why = f"the computation of VM {self.path.name} is lost: {error}"
            raise SupervisorError(why) from error

    async def write_computation(self, computation: bytes) -> None:
        """Have it again, in a worker thread. A failure is logged: then it is lost."""
        try:
            await trio.to_thread.run_sync(write_synced, self.computation, computation)
        except OSError as error:
            problem, _ = file_errors.describe(error, self.path)
            log.error("a computation cannot be written again", vm=self.path.name, problem=problem)

    async def drop_computation(self) -> None:
        """Remove the computation, in a worker thread. A failure is logged: nobody needs it."""
        await remove(self.computation)

    async def drop_reply(self) -> None:
        """Remove the agent's answer, if it is there, in a worker thread. A failure is logged."""
        await remove(self.reply)

    def keep_reply(self, reply: str) -> None:
        """Write the agent's answer, synced, so that it survives a crash. Blocking.

        :raises LaunchError: if it cannot be written
        """
        try:
            write_synced(self.reply, reply.encode())
        except OSError as error:
            consequence = "the agent's answer could not be saved"
            raise file_errors.launch_error(error, self.reply, consequence) from error

    def write_session(self, options: RunOptions) -> tuple[Path, Path]:
        """The files of an owner's launch session, for QEMU. Blocking.

        :raises OSError: if they cannot be written
        """
        contents = options.dh_cert, options.session
        for file, content in zip(self.session, contents, strict=True):
            file.write_text(content)
        return self.session

    def write_renewal(self, content: bytes) -> None:
        """Blocking.

        :raises OSError: if it cannot be written
        """
        self.renewal.unlink(missing_ok=True)
        descriptor = os.open(self.renewal, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content)

    async def drop_renewal(self) -> None:
        """Remove what QEMU has read, in a worker thread. A failure is logged."""
        await remove(self.renewal)

    def clear(self, *, disks: bool) -> None:
        """Remove the files that an ended VM does not need any more. Ignores errors. Blocking.

        :param disks: also remove the disk, the firmware variables, the memory and the state
        """
        files = [self.qmp_socket, self.agent_socket, self.dialled_socket, self.console_socket]
        files += [self.computation]
        files += [self.secret, self.renewal, *self.session]
        if disks:
            files += [self.overlay, self.firmware_vars, self.ram, self.state]
        files += self.results.drafts
        for file in files:
            with suppress(OSError):
                file.unlink(missing_ok=True)
        for share in filter(Path.exists, self.shares):
            try:
                shutil.rmtree(share)
            except OSError as error:
                problem, _ = file_errors.describe(error, share)
                log.error("a guest's secrets cannot be removed", directory=share, problem=problem)
        self.take_back()

    def listen_qmp(self) -> socket.socket:
        """A listening socket, which QEMU gets for QMP. Blocking.

        The caller closes it; QEMU's copy stays open.

        A connection that is made before QEMU is up waits in the backlog for the greeting. So
        nobody has to poll for the socket's path.

        :raises OSError: if the socket's path cannot be made
        """
        return _listen(self.qmp_socket)

    def listen_agent(self) -> socket.socket:
        """The same for the agent, whose connections `network.wrapped` passes on. Blocking."""
        return _listen(self.agent_socket)

    def listen_console(self) -> socket.socket:
        """The same for the serial console. Blocking."""
        return _listen(self.console_socket)

    def listen_dialled(self) -> socket.socket:
        """A listening socket for an agent that dials, which QEMU's user may connect to. Blocking.

        The caller closes it.

        :raises OSError: if the socket's path cannot be made
        """
        listener = _listen(self.dialled_socket)
        user = self.given_to()
        if os.geteuid() == 0 and user is not None:
            os.chown(self.dialled_socket, user, -1, follow_symlinks=False)
        return listener

    def look_at_logs(self, limit: int) -> None:
        """Keep what guest, QEMU and algorithms print from filling the host's disk. Blocking.

        :param limit: of each, in bytes
        :raises OSError: if a log cannot be read or cut
        """
        failed: list[OSError] = []
        for log in (self.serial_log, self.qemu_log, self.results.printed):
            try:
                LogFile(log, limit).look(time.time())
            except OSError as error:
                failed.append(error)
        if failed:
            raise failed[0]

    def log_tail(self, lines: int = 10) -> str:
        """The last lines that QEMU printed; empty if there are none. Blocking."""
        return "\n".join(last_lines(_end_of(self.qemu_log), lines, _TAIL_BYTES))

    def printed(self, size: int) -> bytes:
        """The same in bytes. Blocking, for no longer than a file in memory is read."""
        try:
            with self.serial_log.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - size))
                return log.read()
        except OSError:
            return b""

    def console(self, size: int = _TAIL_BYTES) -> str:
        """The end of what the guest printed, as it came. Blocking."""
        return _end_of(self.serial_log, size)

    def what_was_printed(self) -> str:
        """The path of the guest's console log and its last lines, for errors of a silent guest."""
        lines = last_lines(self.console(), _CONSOLE_LINES, _LINE_BYTES)
        quote = ", last:\n" + "\n".join(lines) if lines else ", nothing so far"
        return f"what the guest printed is in {self.serial_log}{quote}"


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)  # an earlier attempt may have left it
        listener.bind(str(path))
        listener.listen(_BACKLOG)
    except BaseException as error:
        listener.close()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise
    return listener


def open_to_group(directory: Path, gid: int | None) -> None:
    """Let a group pass through a directory, without seeing what is there; or nobody. Blocking.

    :param gid: None for nobody but the owner
    :raises OSError: if that cannot be changed
    """
    os.chown(directory, -1, os.getegid() if gid is None else gid)
    directory.chmod(0o700 if gid is None else 0o710)


def _end_of(file: Path, size: int = _TAIL_BYTES) -> str:
    try:
        with file.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - size))
            return log.read().decode(errors="replace")
    except OSError:
        return ""


def _prepare(
    vm_dir: VmDir, disk: DiskConfig | None, firmware: FirmwareConfig, ram_bytes: int | None
) -> BaseImage | None:
    base = None
    try:
        check_pair(firmware, read_descriptors())
        shutil.copyfile(firmware.vars_file, vm_dir.firmware_vars)
        if disk is not None:
            check_image(disk)
            # Before the disk: if the image is replaced meanwhile, no start takes it for the same.
            base = base_image(disk.file)
            make_overlay(disk, vm_dir.overlay)
        if ram_bytes is not None:
            _make_ram(vm_dir.ram, ram_bytes)
        vm_dir.serial_log.touch()  # so that it is ours even if QEMU runs as root
    except OSError as error:
        consequence = f"the files of VM {vm_dir.path.name} could not be made"
        raise file_errors.launch_error(error, vm_dir.path, consequence) from error
    return base


def _make_ram(file: Path, size_bytes: int) -> None:
    """Make the file of a guest's memory, so that it is ours even if QEMU runs as root.

    It has holes, except on a tmpfs. There a hole takes a page even when it is read, and a process
    that has mapped the file dies of SIGBUS if no page is left.

    :raises OSError: if there is no room for it
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.truncate(descriptor, size_bytes)
        if _is_on_tmpfs(descriptor):
            os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        error.filename = str(file)
        raise
    finally:
        os.close(descriptor)


def _is_on_tmpfs(descriptor: int) -> bool:
    device = os.fstat(descriptor).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    # The fields before " - " begin with the mount's id, its parent's and the device: proc(5).
    mounts = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    types = (line.partition(" - ")[2].split()[0] for line in mounts if line.split()[2] == number)
    return next(types, None) == "tmpfs"

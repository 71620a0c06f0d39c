"""The users that QEMUs run as, if the supervisor is root and is not to run them as root.

QEMU gets its user before its first instruction, not by ``-run-with user=``: that opens every file
as root first, a disk that a guest has written and that may name any other file below it too; and
with it the sandbox could not forbid a change of user.

setpriv changes the user, not ``subprocess``: that would have to fork, with handlers of gRPC's that
meddle with its threads.

The supervisor keeps the directories. A VM's user may pass through ``tmp/`` and the VM's directory,
and has the files that QEMU opens there. So QEMU cannot put a link where the supervisor writes.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from supervisor.config.settings import UidRange
from supervisor.errors import AtCapacity, HostError
from supervisor.qemu import confine

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from supervisor.config import QemuConfig
    from supervisor.qemu.cmdline import Accel

_SETTING = "MANAGER_QEMU_RUN_AS"
#: A VM may have ended by then.
_RETRY_S = 10
_SEV = "/dev/sev"
_DEVICES = ("/dev/kvm", _SEV)
#: Ids that processes in user namespaces may have: subuid(5).
_SUBORDINATE = (Path("/etc/subuid"), Path("/etc/subgid"))


@attrs.frozen
class User:
    """A user of QEMU's, and its groups.

    :param groups: beside ``gid``
    """

    uid: int
    gid: int
    groups: tuple[int, ...]


def run_as(user: User | None) -> list[str]:
    """The words before a command that has to run as this user, for ever: setpriv(1).

    :param user: None for the supervisor's own
    """
    if user is None:
        return []
    groups = ",".join(map(str, user.groups))
    return [
        *("setpriv", f"--reuid={user.uid}", f"--regid={user.gid}"),
        f"--groups={groups}" if groups else "--clear-groups",
        *("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--"),
    ]


class Users:
    """The users of one supervisor's QEMUs.

    :ivar shared: runs trials, and every VM that has no user of its own; its group may pass
        through tmp/ and read templates. None: QEMUs run as the supervisor's user
    """

    def __init__(self, shared: User | None = None, uids: Iterable[int] = ()) -> None:
        self.shared = shared
        self._all = frozenset(uids)
        self._free = set(self._all)

    @property
    def gid(self) -> int | None:
        """The group of all QEMUs; None if they run as the supervisor's user."""
        return self.shared.gid if self.shared else None

    def take(self, uid: int | None = None) -> User | None:
        """The user of one VM, until `give_back`. There is one for each VM that may run.

        :raises AtCapacity: if all are taken, by VMs that were adopted beyond what may run
        :param uid: of the user that the VM had under an earlier supervisor, with whatever
            setting; the VM keeps it, unless that is root
        """
        if self.shared is None or not self._all:
            return self.shared
        if not uid and not self._free:
            raise AtCapacity(
                f"no id of {_SETTING} is free for another VM",
                advice=f"end a VM, or name a wider range in {_SETTING}",
                retry_after_s=_RETRY_S,
            )
        chosen = uid or min(self._free)
        self._free.discard(chosen)
        return User(chosen, chosen, (self.shared.gid, *self.shared.groups))

    def give_back(self, user: User | None) -> None:
        if user and user.uid in self._all:
            self._free.add(user.uid)


def choose(config: QemuConfig) -> Users:
    """The users that the settings name. Blocking.

    :raises HostError: if there is no such user, or the ids may be another's
    """
    wanted = config.run_as
    if wanted is None:
        return Users()
    if os.geteuid() != 0:
        raise HostError(
            f"{_SETTING}={wanted} needs a supervisor that runs as root",
            advice=f"unset {_SETTING}: this supervisor's QEMUs run as its own user",
        )
    if shutil.which("setpriv") is None:
        raise HostError(
            f"{_SETTING}={wanted} needs setpriv, which is not on the PATH",
            advice="install the package util-linux",
        )
    devices = tuple(_device_groups())
    if not isinstance(wanted, UidRange):
        return Users(_named(wanted, devices))
    if taken := _holder(wanted):
        raise HostError(
            f"{_SETTING}={wanted}: {taken}", advice="choose ids that nobody else can have"
        )
    return Users(
        User(wanted.first, wanted.first, devices), range(wanted.first + 1, wanted.last + 1)
    )


def danger(config: QemuConfig) -> HostError | None:
    """That QEMU runs as root; None if it does not. It stops no VM."""
    if config.run_as is not None or not (config.use_sudo or os.geteuid() == 0):
        return None
    return HostError(
        "QEMU runs as root: a guest that takes over QEMU has this host",
        advice=f"start the supervisor as another user, or as root with {_SETTING}",
    )


def check_access(config: QemuConfig, users: Users, accel: Accel) -> None:
    """Check that QEMU's user may open what all VMs share, and pass to tmp/. Blocking.

    :raises HostError: if it may not
    """
    if users.shared is None:
        return
    tests = [
        ("-x", config.tmp.parent),
        *(("-r", file) for file in _shared_files(config) if file.exists()),
        *([("-w", Path(_SEV))] if accel.tee and accel.tee.is_amd else []),
    ]
    for flag, path in tests:
        if not _may(users.shared, flag, path):
            what = "pass through" if flag == "-x" else "open"
            raise HostError(
                f"the user {users.shared.uid} of {_SETTING}={config.run_as} may not {what}"
                f" {path.absolute()}",
                advice="open the file and the directories above it to that user, or move it",
            )


def _shared_files(config: QemuConfig) -> Iterator[Path]:
    tee = config.tee
    yield from (config.disk.file, config.firmware.code_file)
    yield from filter(None, (tee.firmware, tee.kernel, tee.initrd, tee.igvm))


def may_open(user: User | None, path: Path, *, sudo: bool) -> bool:
    """Whether QEMU may read and write a file that is there. Blocking.

    :param user: that QEMU runs as; None for the supervisor's own, or root's with *sudo*
    """
    if user is None:
        return sudo or os.access(path, os.R_OK | os.W_OK)
    return _may(user, "-r", path) and _may(user, "-w", path)


def _may(user: User, flag: str, path: Path) -> bool:
    """Asked of a process of that user: modes, ACLs and all directories above count.

    By a shell, whose own ``test`` asks the kernel. The program test(1) of uutils, which is Ubuntu's
    since 25.10, judges by the mode alone and forgets supplementary groups.
    """
    command = [*run_as(user), "sh", "-c", 'test "$1" "$2"', "sh", flag, str(path.absolute())]
    return not subprocess.run(command, check=False, env=confine.environment()).returncode


def _named(name: str, devices: tuple[int, ...]) -> User:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise HostError(
            f"{_SETTING}={name}: there is no such user",
            advice="make one with 'useradd --system', or name a range of ids such as 200000-200999",
        ) from None
    if entry.pw_uid == 0:
        raise HostError(f"{_SETTING}={name} is root", advice="name another user")
    groups = {*os.getgrouplist(name, entry.pw_gid), *devices} - {entry.pw_gid}
    return User(entry.pw_uid, entry.pw_gid, tuple(sorted(groups)))


def _device_groups() -> Iterable[int]:
    """The groups that may use the devices of KVM and SEV. Not root's: that has other files, too."""
    for path in _DEVICES:
        try:
            found = os.stat(path)
        except OSError:
            continue
        for_group = stat.S_IRGRP | stat.S_IWGRP
        if found.st_gid and found.st_mode & for_group == for_group:
            yield found.st_gid


def _holder(ids: UidRange) -> str | None:
    """Who else may have one of these ids; None if nobody does."""
    for entry in pwd.getpwall():
        if entry.pw_uid in ids:
            return f"{entry.pw_uid} is the user {entry.pw_name}"
    for group in grp.getgrall():
        if group.gr_gid in ids:
            return f"{group.gr_gid} is the group {group.gr_name}"
    for file in _SUBORDINATE:
        try:
            lines = file.read_text(errors="replace").splitlines()
        except OSError:
            continue
        if name := subordinate(lines, ids):
            return f"{name} may have ids of these in user namespaces, by {file}"
    return None


def subordinate(lines: Sequence[str], ids: UidRange) -> str | None:
    """Whose subordinate ids overlap with these, by the lines of subuid(5). Pure."""
    for line in lines:
        name, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        if first.isdecimal() and count.isdecimal():
            begin, end = int(first), int(first) + int(count)
            if begin <= ids.last and ids.first < end:
                return name
    return None

"""Every error the supervisor raises on purpose.

::

    SupervisorError
    ├── ConfigError            a setting is missing, malformed or unknown
    ├── HostError              this host cannot do what was configured (KVM, SEV, a port, tmp/)
    ├── InvalidRequest         the caller's input is malformed; names the member
    │   ├── UnsupportedMedia   … it is not JSON
    │   └── TooLarge           … it is over the limit
    ├── VmNotFound             no VM has this id
    ├── Busy                   what is asked for conflicts with what is
    ├── AtCapacity             no room for one more VM; says which limit and when to try again
    ├── Stopping               the supervisor is about to end
    ├── LaunchError            QEMU did not come up; carries argv, exit code, last log lines
    │   ├── ImageError         … the base image is missing or unreadable
    │   ├── FirmwareError      … OVMF's files are missing or do not belong together
    │   └── PortsTaken         … no free host port, or somebody else was faster
    ├── VmEnded                the VM ended before it answered
    ├── RunFailed              an earlier run with the same key did not succeed
    ├── MonitorError           QMP refused a command, or the link is gone
    │   ├── SocketGone         … nobody listens on QEMU's socket any more
    │   └── MonitorFlooded     … more events come than any guest has reason for
    ├── TemplateError          a template cannot be made, or there is none where one is required
    ├── CloneFailed            a VM from a template did not come up; it may do so from cold
    ├── AgentTimeout           the agent did not become ready, or did not answer, in time
    └── AgentError             the agent answered with an error status

Messages say what happened, to which VM, and what to do about it. The tables from
error to HTTP status and to gRPC code live with the transports, in ``web`` and ``rpc``.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class SupervisorError(Exception):
    """The root. ``str(error)`` is one paragraph fit for an operator.

    :ivar vm_id: the VM that it happened to, if any
    """

    vm_id: str | None = None


class ConfigError(SupervisorError):
    """One or more settings are wrong; each problem is one line."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class HostError(SupervisorError):
    """This host cannot do what the configuration asks of it."""


class InvalidRequest(SupervisorError):
    """The caller's input is malformed. ``member`` is its place, such as ``computation[3]``."""

    def __init__(self, detail: str, *, member: str | None = None) -> None:
        super().__init__(detail)
        self.member = member


class UnsupportedMedia(InvalidRequest):
    """The body is not ``application/json``."""


class TooLarge(InvalidRequest):
    """The computation, or the body that holds it, is over the limit."""


class VmNotFound(SupervisorError):
    def __init__(self, vm_id: str) -> None:
        super().__init__(f"no VM has the id {vm_id!r}")
        self.vm_id = vm_id


class Busy(SupervisorError):
    """What was asked for conflicts with what is; the message says with what."""


class AtCapacity(SupervisorError):
    """There is no room for one more VM.

    :param retry_after_s: whole seconds after which there may be; None if never, as things are set
    """

    def __init__(self, detail: str, *, retry_after_s: int | None) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Stopping(SupervisorError):
    def __init__(
        self, detail: str = "the supervisor is stopping and starts no VMs any more"
    ) -> None:
        super().__init__(detail)


class LaunchError(SupervisorError):
    """QEMU did not come up.

    :param argv: what was started, empty if it did not come to that
    :param exit_code: negative for a signal, None if QEMU was never started
    :param log_tail: the last lines QEMU wrote
    """

    def __init__(
        self,
        detail: str,
        *,
        argv: Sequence[str] = (),
        exit_code: int | None = None,
        log_tail: str = "",
    ) -> None:
        super().__init__(f"{detail}\n{log_tail}" if log_tail else detail)
        self.argv = tuple(argv)
        self.exit_code = exit_code
        self.log_tail = log_tail


class ImageError(LaunchError):
    """The base image is missing or is not what its format says."""


class FirmwareError(LaunchError):
    """OVMF's CODE or VARS file is missing, or the two do not belong together."""


class PortsTaken(LaunchError):
    """A host port that the VM needs belongs to somebody else."""


class VmEnded(SupervisorError):
    """The VM ended while somebody waited for it."""

    def __init__(self, vm_id: str, state: str, reason: str, log_tail: str = "") -> None:
        detail = f"VM {vm_id} ended before its agent answered: {state}, {reason}"
        super().__init__(f"{detail}\n{log_tail}" if log_tail else detail)
        self.vm_id = vm_id
        self.reason = reason


class MonitorError(SupervisorError):
    """QEMU refused a QMP command (``error_class`` is QMP's), or the link is gone (None)."""

    def __init__(self, detail: str, *, error_class: str | None = None) -> None:
        super().__init__(detail)
        self.error_class = error_class


class SocketGone(MonitorError):
    """Nobody listens on the path of QEMU's socket."""


class MonitorFlooded(MonitorError):
    """A guest has QEMU send more events than can be of use to anybody."""


class TemplateError(SupervisorError):
    """A template cannot be made, or there is none for a run that requires one."""


class CloneFailed(SupervisorError):
    """A VM from a template does not restore, or its agent does not answer.

    :ivar vm_id: which; nothing was asked of its agent but to renew itself
    :ivar blames_template: whether it speaks against the template, and not against the host
    """

    def __init__(self, vm_id: str, why: str, blames_template: bool = True) -> None:
        super().__init__(f"VM {vm_id}, from a template: {why}")
        self.vm_id = vm_id
        self.why = why
        self.blames_template = blames_template


class RunFailed(SupervisorError):
    """What an earlier run came to, told to a request that repeats it."""

    def __init__(self, vm_id: str, detail: str) -> None:
        super().__init__(f"the run of VM {vm_id} did not succeed: {detail}")
        self.vm_id = vm_id


class AgentTimeout(SupervisorError):
    """The agent was not ready, or did not answer, within its deadline."""

    def __init__(self, vm_id: str, detail: str) -> None:
        super().__init__(detail)
        self.vm_id = vm_id


class AgentError(SupervisorError):
    """The agent answered with an error.

    :param code: gRPC's name of it, such as ``INTERNAL``
    :param text: the agent's own words
    :param hint: where to look, ours
    """

    def __init__(self, vm_id: str, code: str, text: str, hint: str = "") -> None:
        super().__init__(f"the agent of VM {vm_id} answered {code}: {text}{hint}")
        self.vm_id = vm_id
        self.code = code
        self.text = text


def single(error: Exception) -> Exception:
    """What a nursery wrapped, where it is one error alone."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the known word most like ``word``, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""

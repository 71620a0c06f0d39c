"""Every error the supervisor raises on purpose.

::

    SupervisorError
    ├── ConfigError            a setting is missing, malformed or unknown
    ├── HostError              this host cannot do what was configured (KVM, SEV, a port, tmp/)
    ├── InvalidRequest         the caller's input is malformed; names the member
    │   ├── UnsupportedMedia   … it is not JSON
    │   ├── TooLarge           … it is over the limit
    │   └── TooSlow            … it did not arrive in time
    ├── Unauthenticated        nobody knows who calls
    ├── UnknownCertificate     the client's certificate is of nobody on file
    ├── Forbidden              the caller's role lacks a right
    ├── NotTheirs              a party of a VM asks for what is another's
    ├── Misdirected            the request is for another host
    ├── CrossSite              a web page of another site sent the request
    ├── VmNotFound             no VM has this id, or the VM is another party's
    ├── Busy                   the request conflicts with the present state of a VM or a run
    │   └── KeyReused          … its idempotency key belongs to another request
    ├── AtCapacity             no room for one more VM; names the limit and when to try again
    │   ├── Overloaded         … for one more body; the supervisor receives too many
    │   └── TooOften           … for one more request of this caller
    ├── Stopping               the supervisor is stopping
    ├── TeeUnavailable         this host starts no such confidential guest; says what is missing
    ├── FleetError             this host is a member of a fleet, and
    │   ├── FleetUnavailable   … the fleet's record cannot be reached
    │   ├── NoHost             … no member could ever serve the run; says what each lacks
    │   ├── NotOwner           … the run is another host's by now, or is over
    │   ├── HandedBack         … the run was given back before its agent had it
    │   ├── MemberBroke        … the connection to another member broke
    │   ├── HostLost           … a host that may have the VM is lost
    │   ├── RunLost            … the host that had the run is lost with it
    │   └── RefusedElsewhere   … another member has refused; answered as if it were ours
    ├── LaunchError            QEMU did not start; has argv, exit code, last log lines
    │   ├── ImageError         … the base image is missing or unreadable
    │   ├── FirmwareError      … OVMF's files are missing or do not belong together
    │   └── PortsTaken         … no host port is free, or another process took it first
    ├── VmEnded                the VM ended before it answered
    ├── RunFailed              an earlier run with the same key failed
    ├── MonitorError           QMP refused a command, or the connection is gone
    │   ├── SocketGone         … no process listens on QEMU's socket any more
    │   └── MonitorFlooded     … QEMU sends too many events
    ├── TemplateError          a template cannot be made, or a required template is missing
    ├── CloneFailed            a VM from a template did not start; it may boot from cold
    ├── AgentTimeout           the agent was not ready, or did not answer, in time
    └── AgentError             the agent answered with an error status

A message says what happened, to which VM, and what to do about it. Each wire has one table from
an error to its status: `supervisor.api.http.problems` and `supervisor.api.grpc.errors`.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

from supervisor.guest_text import clean

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


#: How much of an agent's words an error has.
_AGENT_BYTES = 2000


#: How much alike two words must be for one to be meant by the other.
_ALIKE = 0.5


class SupervisorError(Exception):
    """The root. ``str(error)`` is one paragraph for an operator: ``detail; advice``.

    :param detail: what happened
    :param advice: what to do about it; empty if there is nothing to say
    :ivar vm_id: the VM that it happened to, if any
    :ivar retry_after_s: whole seconds after which another attempt may be worth it; None if nobody
        knows
    """

    vm_id: str | None = None
    retry_after_s: int | None = None

    def __init__(self, detail: str, *, advice: str = "") -> None:
        super().__init__(f"{detail}; {advice}" if advice else detail)
        self.detail = detail
        self.advice = advice


class ConfigError(SupervisorError):
    """One or more settings are wrong; each problem is one line."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class HostError(SupervisorError):
    """This host cannot do what the configuration asks of it."""


class InvalidRequest(SupervisorError):
    """The caller's input is malformed.

    :param member: the place of the mistake, such as ``computation[3]``; None if it has no place
    """

    def __init__(self, detail: str, *, member: str | None = None, advice: str = "") -> None:
        super().__init__(detail, advice=advice)
        self.member = member


class UnsupportedMedia(InvalidRequest):
    """The body is not ``application/json``."""


class TooLarge(InvalidRequest):
    """The computation, or the body that holds it, is over the limit."""


class TooSlow(InvalidRequest):
    """The request's body, or its message, did not arrive in time."""


class Unauthenticated(SupervisorError):
    """Nobody knows who calls.

    :param token_id: of a token on file that is not valid any more; empty if none was shown
    """

    def __init__(self, detail: str, *, token_id: str = "") -> None:
        super().__init__(
            detail,
            advice="send 'Authorization: Bearer' with a token of 'qmp-supervisor token create',"
            " or call over the unix socket (MANAGER_SOCKET)",
        )
        self.token_id = token_id


class UnknownCertificate(SupervisorError):
    """The client's certificate is of nobody on file.

    :param names: the names in the certificate
    """

    def __init__(self, names: str) -> None:
        super().__init__(
            f"nobody is known to have a certificate with {names}",
            advice="add an entry to the file MANAGER_TLS_CALLERS, or send a token",
        )


class Forbidden(SupervisorError):
    """The caller's role lacks a right.

    :param having: the roles that have it
    """

    def __init__(self, role: str, right: str, having: Iterable[str]) -> None:
        super().__init__(
            f"the role '{role}' lacks the right '{right}'",
            advice=f"call with one of the roles {', '.join(having)}",
        )
        self.role = role
        self.right = right


class NotTheirs(SupervisorError):
    """A party of a VM asks for what is another's."""

    def __init__(self, vm_id: str, what: str, whose: str) -> None:
        super().__init__(f"{what} of VM {vm_id} is for {whose}")
        self.vm_id = vm_id


class Misdirected(SupervisorError):
    """The request is for a host that this is not."""


class CrossSite(SupervisorError):
    """A web page of another site made a browser send the request."""


class VmNotFound(SupervisorError):
    def __init__(self, vm_id: str) -> None:
        super().__init__(f"no VM has the id {vm_id!r}", advice="list the VMs to see their ids")
        self.vm_id = vm_id


class Busy(SupervisorError):
    """The request conflicts with the present state of a VM or a run; the message says which."""


class KeyReused(Busy):
    """Another request had the idempotency key before."""


class AtCapacity(SupervisorError):
    """There is no room for one more VM.

    :param retry_after_s: whole seconds after which there may be room; None if the settings never
        leave room
    """

    def __init__(self, detail: str, *, retry_after_s: int | None, advice: str = "") -> None:
        super().__init__(detail, advice=advice)
        self.retry_after_s = retry_after_s


class Overloaded(AtCapacity):
    """There is no room for one more request's body."""


class TooOften(AtCapacity):
    """The caller asks more often, or for more at once, than one caller may."""


class Stopping(SupervisorError):
    def __init__(
        self, detail: str = "the supervisor is stopping and does not start VMs any more"
    ) -> None:
        super().__init__(detail)


class TeeUnavailable(SupervisorError):
    """This host starts no confidential guest of the technology that a run asks for."""


class FleetError(SupervisorError):
    """Something that only a member of a fleet meets."""


class FleetUnavailable(FleetError):
    """The fleet's record does not answer, or has lost its majority."""


class NoHost(FleetError):
    """No host of the fleet could ever serve the run."""


class NotOwner(FleetError):
    """The run is another host's by now, or is over."""


class HandedBack(FleetError):
    """The host does not take the run after all; its agent has not got the computation."""


class MemberBroke(FleetError):
    """The connection to another member could not be made, or broke."""


class HostLost(FleetError):
    """A VM is on no host that answers. Whether there is one is not known before all hosts do."""

    def __init__(self, vm_id: str, hosts: Iterable[str]) -> None:
        lost = ", ".join(hosts)
        where = f"one that is lost: {lost}" if lost else "another one"
        super().__init__(
            f"no host that answers has VM {vm_id}; it may be on {where}",
            advice="ask again once that host is back: 'qmp-supervisor host ls'",
        )


class RunLost(FleetError):
    """The host that had the run is lost, and what became of the run is not known."""


class RefusedElsewhere(FleetError):
    """Another member's refusal, to be passed on as if it were ours.

    :param word: of the class that was raised there, as `problem_word` has it; empty if that is not
        known
    :param code: as of `AgentError`
    """

    def __init__(
        self, text: str, *, word: str, retry_after_s: int | None = None, code: str | None = None
    ) -> None:
        super().__init__(text)
        named = (one for one in _kinds() if problem_word(one.__name__) == word)
        self.kind = next(named, FleetError)
        self.retry_after_s = retry_after_s
        self.code = code


class LaunchError(SupervisorError):
    """QEMU did not start. ``str(error)`` ends with ``log_tail``.

    :param argv: the command; empty if no command was run
    :param exit_code: negative for a signal, None if QEMU was never started
    :param log_tail: the last lines that the command wrote
    """

    def __init__(
        self,
        detail: str,
        *,
        advice: str = "",
        argv: Sequence[str] = (),
        exit_code: int | None = None,
        log_tail: str = "",
    ) -> None:
        super().__init__(detail, advice=advice)
        self.argv = tuple(argv)
        self.exit_code = exit_code
        self.log_tail = log_tail

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}\n{self.log_tail}" if self.log_tail else text


class ImageError(LaunchError):
    """The base image is missing or is not what its format says."""


class FirmwareError(LaunchError):
    """OVMF's CODE or VARS file is missing, or the two do not belong together."""


class PortsTaken(LaunchError):
    """A host port that the VM needs belongs to another process.

    :param ports: the ports that QEMU reported as taken; empty if QEMU was not started
    """

    def __init__(
        self,
        detail: str,
        *,
        ports: Iterable[int] = (),
        advice: str = "",
        argv: Sequence[str] = (),
        exit_code: int | None = None,
        log_tail: str = "",
    ) -> None:
        super().__init__(detail, advice=advice, argv=argv, exit_code=exit_code, log_tail=log_tail)
        self.ports = frozenset(ports)


class VmEnded(SupervisorError):
    """The VM ended while a caller waited for its answer."""

    def __init__(self, vm_id: str, state: str, reason: str, log_tail: str = "") -> None:
        detail = f"VM {vm_id} ended before its agent answered: {state}, {reason}"
        super().__init__(f"{detail}\n{log_tail}" if log_tail else detail)
        self.vm_id = vm_id
        self.reason = reason


class RunFailed(SupervisorError):
    """An earlier run with the same key failed; the message says how."""

    def __init__(self, vm_id: str, detail: str) -> None:
        super().__init__(f"the run of VM {vm_id} failed: {detail}")
        self.vm_id = vm_id


class MonitorError(SupervisorError):
    """QEMU refused a QMP command, or the connection is gone.

    :param error_class: QMP's word for a refusal; None if the connection is gone
    """

    def __init__(self, detail: str, *, error_class: str | None = None, advice: str = "") -> None:
        super().__init__(detail, advice=advice)
        self.error_class = error_class


class SocketGone(MonitorError):
    """No process listens on QEMU's socket."""


class MonitorFlooded(MonitorError):
    """QEMU sends so many events that reading them would leave no time for other VMs."""


class TemplateError(SupervisorError):
    """A template cannot be made, or a run requires a template and there is none."""


class CloneFailed(SupervisorError):
    """A VM from a template did not restore, or its agent did not answer.

    The agent has not got the computation yet, so the VM may boot from cold.

    :param why: what failed
    :param blames_template: whether the template is to blame, and not the host
    """

    def __init__(self, vm_id: str, why: str, blames_template: bool = True) -> None:
        super().__init__(f"VM {vm_id}, from a template: {why}")
        self.vm_id = vm_id
        self.why = why
        self.blames_template = blames_template


class AgentTimeout(SupervisorError):
    """The agent was not ready, or did not answer, within its deadline."""

    def __init__(self, vm_id: str, detail: str, *, advice: str = "") -> None:
        super().__init__(detail, advice=advice)
        self.vm_id = vm_id


class AgentError(SupervisorError):
    """The agent answered with an error.

    :param code: gRPC's name of the status, such as ``INTERNAL``
    :param text: the agent's own words; the error has what is fit to be shown of them
    """

    def __init__(self, vm_id: str, code: str, text: str, *, advice: str = "") -> None:
        text = clean(text, _AGENT_BYTES)
        super().__init__(f"the agent of VM {vm_id} answered {code}: {text}", advice=advice)
        self.vm_id = vm_id
        self.code = code
        self.text = text


def problem_word(name: str) -> str:
    """``vm-not-found`` for ``VmNotFound``: the last part of a problem document's type."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


def _kinds() -> Iterator[type[SupervisorError]]:
    rest: list[type[SupervisorError]] = [SupervisorError]
    while rest:
        kind = rest.pop()
        yield kind
        rest += kind.__subclasses__()


def single(error: Exception) -> Exception:
    """The only error of a group, such as a nursery raises; the group if it has several errors."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the known word most like ``word``, or an empty string."""
    likeness, best = max(((_likeness(word, one), one) for one in known), default=(0.0, ""))
    return f"; did you mean {best!r}?" if likeness >= _ALIKE else ""


def _likeness(one: str, other: str) -> float:
    """From 0 to 1. What both begin with, such as ``MANAGER_``, makes them no more alike."""
    ones, others = one.split("_"), other.split("_")
    while len(ones) > 1 and len(others) > 1 and ones[0] == others[0]:
        del ones[0], others[0]
    return difflib.SequenceMatcher(None, "_".join(ones), "_".join(others)).ratio()

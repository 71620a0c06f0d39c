"""``clone.CloneService``: prepares the guest for being frozen, and lets each copy go.

protos/clone.proto describes it. From Prepare on the agent answers nothing but these calls and those
for its health, until the copy is renewed and knows the time: every copy would give the same
answers, from the same random numbers. The renewer renews it as soon as it runs; the time comes with
the first call, which is Renew, or comes over the line.
"""

from __future__ import annotations

import gc
import re
import threading
import time
from typing import TYPE_CHECKING

from .call import Method, encode_detail
from .computation import SPECIMEN, reply_to
from .guest import SETTLE_TIMEOUT_S, TOLERANCE_NS
from .refusal import Refusal, StatusCode
from .wire import decode_fields, encode_fields, fields_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from .access import Access
    from .algorithm import OnEnd
    from .call import Behaviour
    from .guest import Guest
    from .line import Line
    from .renewal import Renewer
    from .service import Agent

#: Of a renewal that is under way; it takes some hundredths of a second, on a busy host some more.
RENEWAL_TIMEOUT_S = 5.0
PREPARING = "this guest is about to be copied"
WAITS = "this guest is one of many alike, and refuses all calls until it is renewed"
WAITS_FOR_TIME = (
    "this guest does not know the time yet: nobody has told it, or not that of its hardware clock"
)
NO_COPY = "this guest is no copy, or had its first call"
_UUID = re.compile(rb"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_MOST_NS = 1 << 63


class Clones:
    """Prepares *guest* for being frozen, and lets the agent of each copy go.

    OSError: the guest waits for a renewal, and nothing is there to renew it.

    :ivar agent_is_up: to be set when the agent's servers run; a guest is not frozen before
    :ivar serve_line: has the line served
    """

    def __init__(self, agent: Agent, guest: Guest, access: Access) -> None:
        self._agent = agent
        self._guest = guest
        self._access = access
        self._lock = threading.Lock()
        self._is_preparing = False
        self._waits = guest.waits()
        self._renewer: Renewer | None = None
        self._patience_s = RENEWAL_TIMEOUT_S
        #: What time it was, and when that was told on the monotonic clock.
        self._told_ns: tuple[int, int] | None = None
        self._has_rehearsed = False
        self._reseed: Callable[[], None] = lambda: None
        self.agent_is_up = threading.Event()
        self.serve_line: Callable[[Line], None] = lambda _: None
        if self._waits:
            self._renewer = guest.start_renewer()
            agent.hold(self.why_held)

    def prepare(self, _: bytes) -> None:
        """Returns when the guest may be frozen. From then on the agent waits for a renewal."""
        with self._lock:
            if self._waits:
                return
            self._is_preparing, self._told_ns = True, None
            try:
                self._agent.hold(self.why_held)
                self._settle(time.monotonic() + SETTLE_TIMEOUT_S)
                line = self._guest.open_line(self.first_call)
                self._warm_up(line)
                self._renewer = self._guest.start_renewer(line)
                self._guest.drop_caches()
                self._guest.have_it_wait()
                self._waits = True
            except OSError as error:
                why = f"the guest cannot be prepared: {error}"
                raise Refusal(StatusCode.INTERNAL, why) from error
            finally:
                self._is_preparing = False
                if not self._waits:
                    self._agent.release()

    def renew(self, message: bytes) -> None:
        """Returns when the guest is renewed as the VM in *message* and its agent is let go.

        The same once more changes nothing, and may tell another time. Any other is refused.
        """
        # Prepare takes long, and this call is answered in the server's only thread.
        if self._is_preparing:
            raise Refusal(StatusCode.FAILED_PRECONDITION, PREPARING)
        machine_id, unix_time_ns = decode(message)
        with self._lock:
            if not self._waits and self._renewer and machine_id == self._guest.machine_id():
                return  # the caller did not get the first answer and asks again
            if not self._waits:
                why = "this guest is no copy, or had another renewal: Prepare comes first"
                raise Refusal(StatusCode.FAILED_PRECONDITION, why)
            if why := self._why_not_renewed():
                raise Refusal(StatusCode.INTERNAL, f"the guest is not renewed: {why}")
            if machine_id != self._guest.machine_id():
                why = f"this guest's machine-id is {self._guest.machine_id()}"
                raise Refusal(StatusCode.FAILED_PRECONDITION, why)
            self._tell(unix_time_ns)
            if why := self._let_go():
                raise Refusal(StatusCode.INTERNAL, why)

    def first_call(self, message: bytes) -> tuple[bytes, bool]:
        """The FirstAnswer to a FirstCall, and whether another call comes.

        Nobody but the host is at the other end of the line.
        """
        try:
            return self._answer(message)
        except Refusal as refusal:
            return _refused(refusal.code, refusal.detail), False
        except Exception as error:  # a bug must not end the server
            return _refused(StatusCode.UNKNOWN, f"the agent failed: {error!r}"), False

    def _answer(self, message: bytes) -> tuple[bytes, bool]:
        if not self._waits and not self._has_rehearsed:
            raise Refusal(StatusCode.FAILED_PRECONDITION, NO_COPY)
        payloads, numbers = fields_of(message)
        self._tell(numbers.get(1, 0))
        if numbers.get(2):
            self._access.open()
        if numbers.get(4):
            self._agent.counted("Rehearsal", lambda: reply_to(SPECIMEN))
            self._has_rehearsed = True
            return b"", True
        computation = self._agent.call("Run", payloads.get(3, b""), lambda _: True)
        return encode_fields((3, computation)), False

    def why_held(self) -> str:
        """Why the agent answers no call; empty if it does, perhaps from now on."""
        if self._is_preparing:
            return PREPARING
        with self._lock:
            if not self._waits:
                return ""
            if why := self._why_not_renewed():
                return f"{WAITS}: {why}"
            return self._let_go()

    def _tell(self, unix_time_ns: int) -> None:
        self._told_ns = unix_time_ns, time.monotonic_ns()

    def _why_not_renewed(self) -> str:
        if not self._renewer:
            return "no renewer runs"
        if self._renewer.has_renewed(self._patience_s):
            return ""
        self._patience_s = 0.0  # once is enough: nobody else is answered meanwhile
        return self._renewer.problem or f"its host gave it no identity in {RENEWAL_TIMEOUT_S:g} s"

    def _let_go(self) -> str:
        """Why the agent of a guest that is renewed cannot be let go; empty if it is."""
        if self._told_ns is None:
            return WAITS_FOR_TIME
        unix_time_ns, told_at = self._told_ns
        now_ns = unix_time_ns + time.monotonic_ns() - told_at
        try:
            if abs(now_ns - self._guest.hardware_clock_s() * 1_000_000_000) > TOLERANCE_NS:
                self._told_ns = None
                return WAITS_FOR_TIME
            self._guest.set_clock(now_ns)
            self._guest.wait_no_more()
        except OSError as error:
            return f"the guest cannot be let go: {error}"
        self._reseed()
        self._waits = False
        self._agent.release()
        return ""

    def _settle(self, deadline: float) -> None:
        if not self.agent_is_up.wait(deadline - time.monotonic()):
            raise Refusal(StatusCode.DEADLINE_EXCEEDED, "the agent's servers are not up")
        if not self._guest.wait_until_settled(deadline):
            why = f"the guest was not brought up within {SETTLE_TIMEOUT_S:g} s"
            raise Refusal(StatusCode.DEADLINE_EXCEEDED, why)

    def _warm_up(self, line: Line | None) -> None:
        """Does now what every copy would otherwise do for itself."""
        # The agent imports these where it needs them, so that it answers sooner.
        import base64  # noqa: F401
        import ctypes  # noqa: F401
        import random
        import tempfile  # noqa: F401

        self._reseed = random.seed
        reply_to(SPECIMEN)
        if line:
            self.serve_line(line)
        # A garbage collection writes to the objects it visits, so a clone would copy their pages.
        gc.collect()
        gc.freeze()


def _refused(code: StatusCode, detail: str) -> bytes:
    """A FirstAnswer."""
    return encode_fields((1, code.value), (2, encode_detail(detail)))


def decode(message: bytes) -> tuple[str, int]:
    """Of the RenewRequest in *message*: the machine-id, and the time in nanoseconds since 1970.

    The rest of it is for guests without a renewer. Refusal: something in it is wrong.
    """
    try:
        payloads, numbers = decode_fields(message)
    except ValueError as error:
        raise Refusal(StatusCode.INVALID_ARGUMENT, f"no renewal: {error}") from error
    vm_id, unix_time_ns = payloads.get(1, b""), numbers.get(4, 0)
    if not _UUID.fullmatch(vm_id):
        raise Refusal(StatusCode.INVALID_ARGUMENT, "no renewal: vm_id is no UUID")
    if not 0 < unix_time_ns < _MOST_NS:
        why = "no renewal: unix_time_ns is no time after 1970"
        raise Refusal(StatusCode.INVALID_ARGUMENT, why)
    return vm_id.replace(b"-", b"").decode().lower(), unix_time_ns


def methods(clones: Clones) -> dict[str, Method]:
    """What *clones* serves over gRPC: methods by their paths."""
    return {
        "/clone.CloneService/Prepare": Method(_without_answer(clones.prepare), slow=True),
        "/clone.CloneService/Renew": Method(_without_answer(clones.renew)),
    }


def _without_answer(act: Callable[[bytes], None]) -> Behaviour:
    """*act*, which takes a message; the answer is an empty message."""

    def answer(message: bytes, _: OnEnd) -> bytes:
        act(message)
        return b""

    return answer

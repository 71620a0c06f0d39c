"""``clone.CloneService``: prepares the guest for being frozen, and renews each copy.

protos/clone.proto describes it. Between Prepare and Renew the agent answers only these calls and
the one for its health: every copy would give the same answers, from the same random numbers.
"""

from __future__ import annotations

import gc
import re
import threading
import time
from typing import TYPE_CHECKING, NamedTuple, Self

from .call import Method
from .computation import SPECIMEN, reply_to
from .guest import SETTLE_TIMEOUT_S
from .refusal import Refusal, StatusCode
from .wire import decode_fields

if TYPE_CHECKING:
    from collections.abc import Callable

    from .algorithm import OnEnd
    from .call import Behaviour
    from .guest import Guest
    from .service import Agent

MIN_ENTROPY_BYTES = 32
WAITS = "this guest is one of many alike, and refuses all calls until CloneService.Renew"
_UUID = re.compile(rb"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# RFC 1123, and no longer than Linux allows.
_HOSTNAME = re.compile(rb"(?=.{1,64}\Z)[0-9a-zA-Z](?:[0-9a-zA-Z.-]*[0-9a-zA-Z])?")


class Renewal(NamedTuple):
    """The new identity of a copy. *machine_id* is the VM's id as 32 hexadecimal digits."""

    machine_id: str
    hostname: str
    entropy: bytes
    unix_time_ns: int

    @classmethod
    def decode(cls, message: bytes) -> Self:
        """The RenewRequest in *message*. ValueError says what is wrong with it."""
        payloads, numbers = decode_fields(message)
        vm_id, hostname = payloads.get(1, b""), payloads.get(2, b"")
        entropy, unix_time_ns = payloads.get(3, b""), numbers.get(4, 0)
        if not _UUID.fullmatch(vm_id):
            raise ValueError("vm_id is no UUID")
        if not _HOSTNAME.fullmatch(hostname):
            raise ValueError("hostname is no host's name of at most 64 characters")
        if len(entropy) < MIN_ENTROPY_BYTES:
            raise ValueError(f"{len(entropy)} bytes of entropy, at least {MIN_ENTROPY_BYTES}")
        if not 0 < unix_time_ns < 1 << 63:
            raise ValueError("unix_time_ns is no time after 1970")
        machine_id = vm_id.replace(b"-", b"").decode().lower()
        return cls(machine_id, hostname.decode(), entropy, unix_time_ns)


class Clones:
    """Prepares *guest* for being frozen, and renews each copy.

    :ivar agent_is_up: to be set when the agent's servers run; a guest is not frozen before
    """

    def __init__(self, agent: Agent, guest: Guest) -> None:
        self._agent = agent
        self._guest = guest
        self._lock = threading.Lock()
        self._waits = guest.waits()
        self._renewed_as: tuple[str, str, bytes] | None = None
        self._reseed: Callable[[], None] = lambda: None
        self.agent_is_up = threading.Event()
        if self._waits:
            agent.hold(WAITS)

    def prepare(self, _: bytes) -> None:
        """Returns when the guest may be frozen. From then on the agent waits for a renewal."""
        with self._lock:
            if self._waits:
                return
            self._agent.hold(WAITS)
            try:
                self._settle(time.monotonic() + SETTLE_TIMEOUT_S)
                self._warm_up()
                self._guest.drop_caches()
                self._guest.have_it_wait()
            except OSError as error:
                self._agent.release()
                why = f"the guest cannot be prepared: {error}"
                raise Refusal(StatusCode.INTERNAL, why) from error
            except Refusal:
                self._agent.release()
                raise
            self._waits = True

    def renew(self, message: bytes) -> None:
        """Gives the guest the names and entropy in *message*, and releases the agent.

        The same renewal once more changes nothing, and may tell another time. Any other is refused.
        """
        # Prepare takes long, and this call is answered in the server's only thread.
        if not self._lock.acquire(blocking=False):
            why = "this guest is about to be copied: it can be renewed when Prepare is done"
            raise Refusal(StatusCode.FAILED_PRECONDITION, why)
        try:
            self._renew(message)
        finally:
            self._lock.release()

    def _renew(self, message: bytes) -> None:
        try:
            new = Renewal.decode(message)
            wanted = new.machine_id, new.hostname, new.entropy
            if not self._waits and wanted == self._renewed_as:
                return  # the caller did not get the first answer and asks again
            if not self._waits:
                why = "this guest is no copy, or had another renewal: Prepare comes first"
                raise Refusal(StatusCode.FAILED_PRECONDITION, why)
            self._guest.set_clock(new.unix_time_ns)
            self._guest.add_entropy(new.entropy)
            self._guest.rename(new.hostname, new.machine_id)
            self._guest.wait_no_more()
        except ValueError as error:
            why = f"no renewal: {error}"
            raise Refusal(StatusCode.INVALID_ARGUMENT, why) from error
        except OSError as error:
            why = f"the guest cannot be renewed: {error}"
            raise Refusal(StatusCode.INTERNAL, why) from error
        self._reseed()
        self._waits, self._renewed_as = False, wanted
        self._agent.release()

    def _settle(self, deadline: float) -> None:
        if not self.agent_is_up.wait(deadline - time.monotonic()):
            raise Refusal(StatusCode.DEADLINE_EXCEEDED, "the agent's servers are not up")
        if not self._guest.wait_until_settled(deadline):
            why = f"the guest was not brought up within {SETTLE_TIMEOUT_S:g} s"
            raise Refusal(StatusCode.DEADLINE_EXCEEDED, why)

    def _warm_up(self) -> None:
        """Does now what every copy would otherwise do for itself."""
        # The agent imports these where it needs them, so that it answers sooner.
        import base64  # noqa: F401
        import ctypes  # noqa: F401
        import random
        import tempfile  # noqa: F401

        self._reseed = random.seed
        reply_to(SPECIMEN)
        # A garbage collection writes to the objects it visits, so a clone would copy their pages.
        gc.collect()
        gc.freeze()


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

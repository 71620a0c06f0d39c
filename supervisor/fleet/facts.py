"""What a host can do, what a run needs, and whether the one serves the other. Pure."""

from __future__ import annotations

import hashlib
import json
import random
from typing import TYPE_CHECKING, TypeVar

import attrs
import cattrs

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")

_MIB = 2**20
#: What a host without a template comes after, whatever else it has.
_BARE = 5


@attrs.frozen(kw_only=True)
class Needs:
    """What a run asks of the host that takes it.

    :param tee: a technology; empty for any host
    :param image: the SHA-256 of the guest image, in hexadecimal digits; empty for any
    :param memory_bytes: what the VM is to have at least
    :param template: whether it is to start from a template
    """

    tee: str = ""
    image: str = ""
    memory_bytes: int = 0
    template: bool = False
    labels: dict[str, str] = attrs.field(factory=dict)

    def __str__(self) -> str:
        asked = {
            "tee": self.tee,
            "image": self.image[:12],
            "memory": f"{self.memory_bytes // _MIB}M" if self.memory_bytes else "",
        }
        words = [f"{name}={value}" for name, value in asked.items() if value]
        words += ["template"] * self.template
        words += [f"label {name}={value}" for name, value in self.labels.items()]
        return ", ".join(words) or "room at all"

    @property
    def kind(self) -> str:
        """A word that runs with the same needs share."""
        return hashlib.sha256(self.encode()).hexdigest()[:16]

    def encode(self) -> bytes:
        return json.dumps(attrs.asdict(self), sort_keys=True).encode()

    @classmethod
    def decode(cls, content: bytes) -> Needs:
        """:raises ValueError: if it is no such thing"""
        return _read(cls, content)


@attrs.frozen(kw_only=True)
class HostFacts:
    """What one member tells the others, and what it has free now.

    :param address: where other members reach it
    :param seat: which supervisor it is: the same after its restart, another one on another host
    :param tee: by technology that it starts guests of, how many more
    :param image: as of `Needs`
    :param template: whether a run can start from a template
    :param templates: whether it makes any
    :param vm_memory_bytes: what each of its VMs has
    :param since: when this supervisor became a member, in seconds since 1970
    """

    name: str
    address: str
    seat: str
    version: str = ""
    qemu: str = ""
    firmware: str = ""
    image: str = ""
    template: bool = False
    templates: bool = False
    tee: dict[str, int] = attrs.field(factory=dict)
    vms_free: int = 0
    memory_free_bytes: int = 0
    vcpus_free: int = 0
    vm_memory_bytes: int = 0
    vm_vcpus: int = 0
    labels: dict[str, str] = attrs.field(factory=dict)
    draining: bool = False
    since: float = 0.0

    def encode(self) -> bytes:
        return json.dumps(attrs.asdict(self)).encode()

    @classmethod
    def decode(cls, content: bytes) -> HostFacts:
        """:raises ValueError: if it is no such thing"""
        return _read(cls, content)

    @property
    def room(self) -> int:
        """How many more VMs it has room for."""
        if not self.vm_memory_bytes or not self.vm_vcpus:
            return 0
        return max(
            0,
            min(
                self.vms_free,
                self.memory_free_bytes // self.vm_memory_bytes,
                self.vcpus_free // self.vm_vcpus,
            ),
        )

    @property
    def step(self) -> tuple[object, ...]:
        """What the others are told of at once when it changes; the rest goes with the next lease.

        It is what the host is, and not how much room it has: each run would be told to all hosts
        twice, and none asks for that.
        """
        return (
            self.template,
            self.draining,
            self.image,
            tuple(self.tee),
            self.vm_memory_bytes,
            tuple(self.labels.items()),
        )


def lacks(facts: HostFacts, needs: Needs) -> list[str]:
    """What a host would have to be to serve such a run at all, room aside; empty if it does."""
    found = []
    if needs.tee and needs.tee not in facts.tee:
        has = f"only {', '.join(sorted(facts.tee))}" if facts.tee else "no confidential guests"
        found.append(f"tee={needs.tee}: it starts {has}")
    if needs.image and needs.image != facts.image:
        found.append(f"image={needs.image[:12]}: its image is {facts.image[:12] or 'unknown'}")
    if needs.memory_bytes > facts.vm_memory_bytes:
        found.append(
            f"memory={needs.memory_bytes // _MIB}M: its VMs have {facts.vm_memory_bytes // _MIB}M"
        )
    if needs.template and not facts.templates:
        found.append("template: it makes none")
    for name, value in needs.labels.items():
        if facts.labels.get(name) != value:
            has = (
                f"it has {name}={facts.labels[name]}"
                if name in facts.labels
                else f"it has no {name}"
            )
            found.append(f"label {name}={value}: {has}")
    return found


def likeliest(hosts: Iterable[HostFacts], needs: Needs) -> HostFacts | None:
    """Which of these most likely takes such a run now; by chance, among equals."""
    found = [one for one in hosts if has_room(one, needs) and not lacks(one, needs)]
    random.shuffle(found)
    return min(found, key=lambda one: rank(one, needs), default=None)


def has_room(facts: HostFacts, needs: Needs, kept: int = 0) -> bool:
    """Whether a host that serves such a run has room for one more.

    :param kept: for how many others, of which each may want all that this one does
    """
    has_number = not needs.tee or facts.tee.get(needs.tee, 0) > kept
    return facts.room > kept and has_number and not facts.draining


def rank(facts: HostFacts, needs: Needs) -> int:
    """Of hosts that serve such a run, the one with the lowest is to have it."""
    return min(_spared(facts, needs), _BARE - 1) + (0 if facts.template else _BARE)


def _spared(facts: HostFacts, needs: Needs) -> int:
    """How much a host has that such a run does not ask for."""
    return (
        (bool(facts.tee) and not needs.tee)
        + (facts.vm_memory_bytes > needs.memory_bytes)
        + len(facts.labels)
        - len(needs.labels)
    )


def narrowed(needs: Needs, hosts: Iterable[HostFacts]) -> Needs:
    """What all hosts that serve such a run have in common.

    A host that has all of it serves the run as well. So there are no more kinds of runs than there
    are kinds of hosts, whatever callers ask for.
    """
    serving = [host for host in hosts if not lacks(host, needs)]
    if not serving:
        return needs
    labels = set(serving[0].labels.items())
    for host in serving:
        labels &= set(host.labels.items())
    images = {host.image for host in serving}
    return attrs.evolve(
        needs,
        memory_bytes=min(host.vm_memory_bytes for host in serving),
        template=all(host.templates for host in serving),
        labels=dict(sorted(labels)),
        image=images.pop() if len(images) == 1 else needs.image,
    )


def nobody_serves(hosts: Iterable[HostFacts], needs: Needs, *, tells_hosts: bool) -> str:
    """Why no host of these serves such a run; empty if one does.

    :param tells_hosts: whether who asks may know what each host has
    """
    found = []
    for host in hosts:
        missing = lacks(host, needs)
        if not missing:
            return ""
        found.append(f"{host.name}: {', '.join(missing)}")
    if not tells_hosts:
        return f"none has {needs}"
    return "; ".join(found) or "no host is known"


def _read(cls: type[T], content: bytes) -> T:
    try:
        return _converter.structure(json.loads(content), cls)
    except (cattrs.BaseValidationError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{cls.__name__}: {error!r}") from error


#: Of a later version it leaves out what it does not know: members are upgraded one by one.
_converter = cattrs.Converter()

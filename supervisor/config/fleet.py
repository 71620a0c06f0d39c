"""Settings for a fleet: which one, and what other members are told of this host."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NewType

import attrs

from supervisor.config.settings import parsed_by, setting

_SERVER = re.compile(r"nats://(?P<host>[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\]):(?P<port>[0-9]{1,5})")
_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\]):(?P<port>[0-9]{1,5})")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}=[^=,\x00-\x1f\x7f]{1,63}")

Servers = NewType("Servers", tuple[str, ...])
HostLabels = NewType("HostLabels", dict[str, str])


@attrs.frozen
class Address:
    """``host:port``."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def read_address(text: str) -> Address:
    """:raises ValueError: with a text such as "must be ...", to follow the setting's name"""
    found = _ADDRESS.fullmatch(text)
    if not found or not 0 < int(found["port"]) < 2**16:
        raise ValueError("must be host:port, such as 10.0.0.1:9022")
    return Address(found["host"].strip("[]"), int(found["port"]))


def _servers(text: str) -> Servers:
    found = tuple(one.strip() for one in text.split(","))
    if not all(_SERVER.fullmatch(one) for one in found):
        raise ValueError("must be servers such as nats://10.0.0.1:4222,nats://10.0.0.2:4222")
    return Servers(found)


def _host_labels(text: str) -> HostLabels:
    words = [one.strip() for one in text.split(",")]
    if not all(_LABEL.fullmatch(one) for one in words):
        raise ValueError("must be labels such as zone=a,rack=7")
    return HostLabels(dict(one.split("=", 1) for one in words))


parsed_by(_servers, Servers)
parsed_by(_host_labels, HostLabels)
parsed_by(read_address, Address)


@attrs.frozen(kw_only=True)
class FleetConfig:
    """The fleet that this host is a member of, if any."""

    servers: Servers | None = setting(
        "MANAGER_FLEET",
        None,
        "NATS servers of the fleet that this host is a member of, such as"
        " nats://10.0.0.1:4222,nats://10.0.0.2:4222; unset: it is alone",
    )
    directory: Path = setting(
        "MANAGER_FLEET_DIR",
        Path("/etc/qmp-supervisor/fleet"),
        "directory of this member, as qmp-supervisor fleet init makes it",
    )
    address: Address | None = setting(
        "MANAGER_FLEET_ADDRESS",
        None,
        "where the other members reach this one, and where it listens for them",
        shown="the one in its certificate",
    )
    labels: HostLabels | None = setting(
        "MANAGER_FLEET_LABELS", None, "what a run may ask of a host, such as zone=a,rack=7"
    )

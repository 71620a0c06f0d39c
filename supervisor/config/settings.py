"""How a setting is declared and read: one declaration serves the parser, the help and the docs.

A setting is an attrs field made by `setting`. A class of settings may contain other classes of
settings. Values come from the environment as strings. `read` reports all problems at once, by the
name that the operator wrote. An empty value counts as not set, as with ``Environment=NAME=`` in a
unit file.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NewType, TypeVar

import attrs
import cattrs
import durationpy
import isodate

from supervisor.errors import ConfigError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

T = TypeVar("T")

Seconds = NewType("Seconds", float)
Ratio = NewType("Ratio", float)
Port = NewType("Port", int)
OnOff = NewType("OnOff", str)
Size = NewType("Size", str)
IPv4 = NewType("IPv4", str)
Names = NewType("Names", tuple[str, ...])
UserName = NewType("UserName", str)
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Networks = NewType("Networks", tuple[Network, ...])


class Switch(enum.StrEnum):
    """``auto``: if the host can; ``true``: refuse to start if it cannot; ``false``: never."""

    AUTO = "auto"
    TRUE = "true"
    FALSE = "false"


@attrs.frozen
class PortRange:
    """Host ports, first and last included, written ``6100-6200``."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def __len__(self) -> int:
        return self.last - self.first + 1


@attrs.frozen
class UidRange:
    """Ids of users and of groups, first and last included, written ``200000-200999``."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def __contains__(self, number: int) -> bool:
        return self.first <= number <= self.last


@attrs.frozen
class AgentUrl:
    """``host:port`` of the agent.

    :param port: None for the text ``{port}``, which stands for the VM's host port
    """

    host: str
    port: int | None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{'{port}' if self.port is None else self.port}"

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def setting(env: str, default: object, help: str, *aliases: str, shown: str | None = None) -> Any:
    """A field that is read from the variable ``env``, or else from the first alias that is set.

    :param help: the setting's meaning, in help and docs
    :param shown: the default's text in help and docs, if the value itself says little
    """
    metadata = {"names": (env, *aliases), "help": help, "shown": shown}
    return attrs.field(default=default, metadata=metadata)


@attrs.frozen
class Setting:
    """One declared setting. ``path`` leads to it from the root, such as ``("http", "port")``."""

    path: tuple[str, ...]
    names: tuple[str, ...]
    type: Any
    default: object
    help: str
    shown: str | None

    @property
    def default_text(self) -> str:
        if self.shown is not None:
            return self.shown
        if self.default in (None, ()):
            return ""
        if isinstance(self.default, bool):
            return str(self.default).lower()
        if isinstance(self.default, float):
            return go_duration(self.default) if self.type is not Ratio else f"{self.default:g}"
        return str(self.default)


def declared(cls: type[Any], path: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Every setting of a class of settings, in the order of declaration."""
    attrs.resolve_types(cls)
    for field in attrs.fields(cls):
        here = (*path, field.name)
        meta = field.metadata
        if "names" not in meta:
            yield from declared(field.type, here)
        elif meta["names"]:
            yield Setting(
                here, meta["names"], field.type, field.default, meta["help"], meta["shown"]
            )


def read(
    cls: type[T],
    environ: Mapping[str, str],
    prefix: str,
    refused: Mapping[str, str],
    without_effect: Collection[str] = (),
) -> T:
    """An instance of ``cls`` from environment variables.

    :param prefix: variables with this prefix must be declared; others are ignored
    :param refused: why a known name is not accepted, by name
    :param without_effect: names that are accepted and not read
    :raises ConfigError: with a line for each problem
    """
    settings = list(declared(cls))
    problems = [f"{name}: {why}" for name, why in refused.items() if environ.get(name)]
    known = {name for setting in settings for name in setting.names}
    accepted = {*known, *refused, *without_effect}
    for name in sorted(environ):
        if name.startswith(prefix) and name not in accepted:
            problems.append(f"{name} is not a setting{nearest(name, known)}")
    values: dict[str, Any] = {}
    for setting in settings:
        name = next((name for name in setting.names if environ.get(name)), "")
        if not name:
            continue
        try:
            value = _converter.structure(environ[name], setting.type)
        except (ValueError, TypeError) as error:
            problems.append(f"{name}={environ[name]!r}: {error}")
            continue
        _place(values, setting.path, value)
    refuse(problems)
    return _build(cls, values)


def refuse(problems: Sequence[str]) -> None:
    """Raise a ConfigError if there are problems."""
    if problems:
        raise ConfigError(problems)


def _place(values: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    for name in path[:-1]:
        values = values.setdefault(name, {})
    values[path[-1]] = value


def _build(cls: type[T], values: Mapping[str, Any]) -> T:
    given = {
        field.name: _build(field.type, values[field.name])
        if attrs.has(field.type) and isinstance(values[field.name], dict)
        else values[field.name]
        for field in attrs.fields(cls)  # type: ignore[arg-type]
        if field.name in values
    }
    return cls(**given)


# --- from a string to a value ---------------------------------------------------------------

_converter = cattrs.Converter()


def _whole(text: str, low: int, high: int, noun: str) -> int:
    if not re.fullmatch(r"[0-9]+", text) or not low <= int(text) <= high:
        raise ValueError(f"must be {noun}, {low} to {high}")
    return int(text)


def _bool(text: str) -> bool:
    match text.lower():
        case "true" | "1" | "on" | "yes":
            return True
        case "false" | "0" | "off" | "no":
            return False
    raise ValueError("must be true or false")


def _switch(text: str) -> Switch:
    if text.lower() == Switch.AUTO:
        return Switch.AUTO
    try:
        return Switch.TRUE if _bool(text) else Switch.FALSE
    except ValueError:
        raise ValueError("must be auto, true or false") from None


def _ipv4(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise ValueError("must be an IPv4 address: QEMU's user network forwards IPv4") from None


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip().lower() for name in text.split(","))
    if not all(re.fullmatch(r"[a-z0-9.-]+", name) for name in names):
        raise ValueError("must be host names without a port, such as vms.example.org,vms")
    return names


def _networks(text: str) -> Networks:
    try:
        return Networks(tuple(ipaddress.ip_network(word.strip()) for word in text.split(",")))
    except ValueError as error:
        raise ValueError(f"must be networks such as 10.1.2.0/24,fd00:1::/64: {error}") from None


def _on_off(text: str) -> str:
    if text not in ("on", "off", "yes", "no", "true", "false", "auto"):
        raise ValueError("must be one of QEMU's words on, off, auto, true, false, yes, no")
    return text


def _size(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]*[KMGTkmgt]?", text):
        raise ValueError("must be a size in QEMU's notation, such as 2048M or 30G")
    return text


#: durationpy's units without ``mm`` and ``y``, which have no fixed length; and nothing between
#: the parts.
_GO_DURATION = r"[+-]?(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h|d|w))+"
#: Not all that isodate reads: no date after the P, and no P alone.
_ISO_DURATION = r"[+-]?P(?=.*[0-9])([0-9.,]+[YMWD])*(T([0-9.,]+[HMS])+)?"
#: Characters. What is longer takes the libraries long to read.
_LONGEST_DURATION = 64
#: A hundred years. A longer duration is a mistake, and leads to dates that cannot be written.
_LONGEST_S = 100 * 365 * 24 * 3600.0


def parse_seconds(text: str) -> float:
    """The seconds of a duration, in the notation of Go, ``1h30m``, or of ISO 8601, ``PT1H30M``.

    :raises ValueError: with a text such as "must be ...", to follow the name of the duration
    """
    if len(text) > _LONGEST_DURATION:
        raise ValueError("must be a duration such as 90s, 1h30m, 250ms or PT1H30M")
    if re.fullmatch(_GO_DURATION, text):
        parse = durationpy.from_str
    elif re.fullmatch(_ISO_DURATION, text):
        parse = isodate.parse_duration
    else:
        raise ValueError("must be a duration such as 90s, 1h30m, 250ms or PT1H30M")
    try:
        length = parse(text)
    except (ValueError, OverflowError):  # the libraries' own errors are ValueErrors
        raise ValueError("must be a duration such as 90s, 1h30m, 250ms or PT1H30M") from None
    if isinstance(length, isodate.Duration):
        raise ValueError("must not count in years or months, which vary in length")
    return _in_range(length.total_seconds())


def _seconds(text: str) -> float:
    """A duration in a setting, in which a plain number means seconds."""
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", text):
        return _in_range(float(text))
    return parse_seconds(text)


def _in_range(seconds: float) -> float:
    if seconds <= 0:
        raise ValueError("must be longer than 0 s")
    if seconds > _LONGEST_S:
        raise ValueError(f"must not be longer than {go_duration(_LONGEST_S)}")
    return seconds


def go_duration(seconds: float) -> str:
    """Seconds in Go's notation: ``90s``, ``168h``."""
    for unit, length in (("h", 3600), ("m", 60)):
        if seconds >= 2 * length and not seconds % length:
            return f"{seconds / length:g}{unit}"
    return f"{seconds:g}s"


def _ratio(text: str) -> float:
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) or not float(text):
        raise ValueError("must be a number such as 1.5, and above 0")
    return float(text)


def _choice(cls: type[enum.StrEnum]) -> Callable[[str], enum.StrEnum]:
    def parse(text: str) -> enum.StrEnum:
        words = [member.value for member in cls]
        if text.lower() not in words:
            raise ValueError(f"must be one of {', '.join(words)}{nearest(text, words)}")
        return cls(text.lower())

    return parse


def _range(text: str) -> PortRange:
    match = re.fullmatch(r"([0-9]+)-([0-9]+)", text)
    if not match:
        raise ValueError("must be a range of ports such as 6100-6200")
    first, last = (_whole(part, 1, 65535, "ports") for part in match.groups())
    if first > last:
        raise ValueError("must begin with the lower port")
    return PortRange(first, last)


def _run_as(text: str) -> UidRange | UserName:
    match = re.fullmatch(r"([0-9]+)-([0-9]+)", text)
    if not match:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", text):
            raise ValueError("must be the name of a user, or a range of ids such as 200000-200999")
        return UserName(text)
    first, last = (_whole(part, 1, 2**31 - 1, "ids") for part in match.groups())
    if first >= last:
        raise ValueError("must begin with the lower id, and have two at least")
    return UidRange(first, last)


def _agent_url(text: str) -> AgentUrl:
    host, _, port = text.rpartition(":")
    if not host or "/" in text:
        raise ValueError("must be host:port without a scheme, such as localhost:7002")
    number = None if port == "{port}" else _whole(port, 1, 65535, "a port")
    return AgentUrl(host.strip("[]"), number)


def _unchanged(text: str) -> str:
    return text


def _hook(parse: Callable[[str], object]) -> Callable[[str, Any], object]:
    return lambda text, _: parse(text)


def _number(text: str) -> int:
    return _whole(text, 0, 2**31 - 1, "a whole number")


_PARSERS: dict[Any, Callable[[str], object]] = {
    str: _unchanged,
    bool: _bool,
    int: _number,
    int | None: _number,
    Port: lambda text: _whole(text, 0, 65535, "a port"),
    Switch: _switch,
    OnOff: _on_off,
    Size: _size,
    Size | None: _size,
    IPv4: _ipv4,
    Names: _names,
    Networks: _networks,
    Seconds: _seconds,
    Seconds | None: _seconds,
    Ratio: _ratio,
    PortRange: _range,
    AgentUrl: _agent_url,
    Path: Path,
    Path | None: Path,
    str | None: _unchanged,
    PortRange | None: _range,
    UidRange | UserName | None: _run_as,
}
for _type, _parse in _PARSERS.items():
    _converter.register_structure_hook(_type, _hook(_parse))


E = TypeVar("E", bound=type[enum.StrEnum])


def choice(cls: E) -> E:
    """Lets settings have this enum, or this enum and None, as their type."""
    parsed_by(_choice(cls), cls)
    return cls


def parsed_by(parse: Callable[[str], T], cls: type[T]) -> None:
    """Let settings have this class, or this class and None, as their type.

    :param parse: raises ValueError with a text such as "must be ...", to follow the setting's name
    """
    _converter.register_structure_hook(cls, _hook(parse))
    _converter.register_structure_hook(cls | None, _hook(parse))

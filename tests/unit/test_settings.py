"""How one setting is read: good and bad values of every type."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

import attrs
import pytest

from supervisor.config import settings
from supervisor.config.settings import (
    AgentUrl,
    OnOff,
    Port,
    PortRange,
    Ratio,
    Seconds,
    Size,
    Switch,
    choice,
    setting,
)
from supervisor.errors import ConfigError


@choice
class Colour(enum.StrEnum):
    RED = "red"
    DARK_BLUE = "dark-blue"


@attrs.frozen(kw_only=True)
class Inner:
    deep: int = setting("T_DEEP", 1, "a setting inside another", "OLD_DEEP")


@attrs.frozen(kw_only=True)
class Some:
    """One setting of each type."""

    text: str = setting("T_STR", "", "")
    flag: bool = setting("T_BOOL", False, "")
    number: int = setting("T_INT", 0, "")
    port: Port = setting("T_PORT", 1, "")
    switch: Switch = setting("T_SWITCH", Switch.AUTO, "")
    on_off: OnOff = setting("T_ON_OFF", "on", "")
    size: Size = setting("T_SIZE", "1M", "")
    seconds: Seconds = setting("T_SECONDS", 1.0, "")
    maybe_seconds: Seconds | None = setting("T_MAYBE_SECONDS", None, "")
    ratio: Ratio = setting("T_RATIO", 1.0, "")
    colour: Colour = setting("T_COLOUR", Colour.RED, "")
    maybe_colour: Colour | None = setting("T_MAYBE_COLOUR", None, "")
    url: AgentUrl = setting("T_URL", AgentUrl("localhost", 1), "")
    file: Path = setting("T_PATH", Path("/"), "")
    maybe_file: Path | None = setting("T_MAYBE_PATH", None, "")
    maybe_text: str | None = setting("T_MAYBE_STR", None, "")
    maybe_range: PortRange | None = setting("T_RANGE", None, "")
    inner: Inner = attrs.field(factory=Inner)


def load(**environ: str) -> Some:
    return settings.read(Some, environ, "T_", {})


@pytest.mark.parametrize(
    ("name", "field", "written", "read"),
    [
        ("T_STR", "text", "two words", "two words"),
        *(("T_BOOL", "flag", word, True) for word in ("true", "True", "1", "on", "yes")),
        ("T_INT", "number", "0", 0),
        ("T_INT", "number", "2147483647", 2147483647),
        ("T_PORT", "port", "0", 0),
        ("T_PORT", "port", "65535", 65535),
        ("T_SWITCH", "switch", "AUTO", Switch.AUTO),
        ("T_SWITCH", "switch", "yes", Switch.TRUE),
        ("T_SWITCH", "switch", "0", Switch.FALSE),
        *(
            ("T_ON_OFF", "on_off", word, word)
            for word in ("on", "off", "yes", "no", "true", "false", "auto")
        ),
        *(("T_SIZE", "size", word, word) for word in ("512", "1k", "2048M", "30G", "1T")),
        ("T_SECONDS", "seconds", "90", 90.0),
        ("T_SECONDS", "seconds", "0.5", 0.5),
        ("T_SECONDS", "seconds", "1m30s", 90.0),
        ("T_SECONDS", "seconds", "250ms", 0.25),
        ("T_SECONDS", "seconds", "1h", 3600.0),
        ("T_SECONDS", "seconds", "PT1H30M", 5400.0),
        ("T_MAYBE_SECONDS", "maybe_seconds", "P1D", 86400.0),
        ("T_RATIO", "ratio", "1.5", 1.5),
        ("T_RATIO", "ratio", "2", 2.0),
        ("T_RATIO", "ratio", "0.25", 0.25),
        ("T_COLOUR", "colour", "red", Colour.RED),
        ("T_COLOUR", "colour", "DARK-BLUE", Colour.DARK_BLUE),
        ("T_MAYBE_COLOUR", "maybe_colour", "red", Colour.RED),
        ("T_URL", "url", "localhost:7002", AgentUrl("localhost", 7002)),
        ("T_URL", "url", "10.0.0.1:{port}", AgentUrl("10.0.0.1", None)),
        ("T_URL", "url", "[::1]:7002", AgentUrl("::1", 7002)),
        ("T_PATH", "file", "a/b", Path("a/b")),
        ("T_MAYBE_PATH", "maybe_file", "/f", Path("/f")),
        ("T_MAYBE_STR", "maybe_text", "x", "x"),
        ("T_RANGE", "maybe_range", "6100-6200", PortRange(6100, 6200)),
        ("T_RANGE", "maybe_range", "5-5", PortRange(5, 5)),
    ],
)
def test_good_value(name: str, field: str, written: str, read: Any) -> None:
    assert getattr(load(**{name: written}), field) == read


@pytest.mark.parametrize("word", ["false", "0", "off", "no", "FALSE"])
def test_false(word: str) -> None:
    assert load(T_BOOL="true").flag
    assert not load(T_BOOL=word).flag


@pytest.mark.parametrize(
    ("name", "written", "why"),
    [
        ("T_BOOL", "maybe", "must be true or false"),
        ("T_INT", "-1", "must be a whole number"),
        ("T_INT", "1.5", "must be a whole number"),
        ("T_INT", "0x10", "must be a whole number"),
        ("T_INT", "2147483648", "must be a whole number"),
        ("T_INT", "\N{ARABIC-INDIC DIGIT ONE}", "must be a whole number"),
        ("T_PORT", "65536", "must be a port, 0 to 65535"),
        ("T_PORT", "http", "must be a port"),
        ("T_SWITCH", "perhaps", "must be auto, true or false"),
        ("T_ON_OFF", "On", "on, off"),
        ("T_ON_OFF", "on,x=y", "on, off"),
        ("T_SIZE", "0M", "2048M"),
        ("T_SIZE", "2 G", "2048M"),
        ("T_SIZE", "2GB", "2048M"),
        ("T_SIZE", "lots", "2048M"),
        ("T_SECONDS", "0", "longer than 0 s"),
        ("T_SECONDS", "0s", "longer than 0 s"),
        ("T_SECONDS", "-5s", "longer than 0 s"),
        ("T_SECONDS", "soon", "must be a duration"),
        ("T_SECONDS", "1.2.3", "must be a duration"),
        ("T_SECONDS", "nan", "must be a duration"),
        ("T_SECONDS", "10 s", "must be a duration"),
        ("T_SECONDS", ".", "must be a duration"),
        ("T_SECONDS", "9" * 400, "must not be longer than"),
        ("T_SECONDS", "P1M", "years or months"),
        ("T_MAYBE_SECONDS", "soon", "must be a duration"),
        ("T_RATIO", "0", "and above 0"),
        ("T_RATIO", "0.0", "and above 0"),
        ("T_RATIO", "-1", "must be a number such as 1.5"),
        ("T_RATIO", "1e3", "must be a number such as 1.5"),
        ("T_RATIO", "inf", "must be a number such as 1.5"),
        ("T_RATIO", "150%", "must be a number such as 1.5"),
        ("T_COLOUR", "rad", "must be one of red, dark-blue; did you mean 'red'?"),
        ("T_COLOUR", "?", "must be one of red, dark-blue"),
        ("T_MAYBE_COLOUR", "dark_blue", "did you mean 'dark-blue'?"),
        ("T_URL", "http://localhost:7002", "without a scheme"),
        ("T_URL", "localhost", "must be host:port"),
        ("T_URL", ":7002", "must be host:port"),
        ("T_URL", "localhost:0", "must be a port, 1 to 65535"),
        ("T_URL", "localhost:{prot}", "must be a port"),
        ("T_RANGE", "6100", "must be a range"),
        ("T_RANGE", "6200-6100", "begin with the lower"),
        ("T_RANGE", "0-10", "must be ports, 1 to 65535"),
        ("T_RANGE", "1-65536", "must be ports"),
    ],
)
def test_bad_value_is_named_and_explained(name: str, written: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(**{name: written})
    (problem,) = caught.value.problems
    assert problem.startswith(f"{name}={written!r}: ")
    assert why in problem


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("90s", 90),
        ("1h30m", 5400),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("+1m", 60),
        ("250ms", 0.25),
        ("1500us", 0.0015),
        ("1500\N{MICRO SIGN}s", 0.0015),
        ("1d", 86400),
        ("1w", 604800),
        ("PT1H30M", 5400),
        ("P1DT2H", 93600),
        ("P1W", 604800),
        ("PT0.5S", 0.5),
        ("PT0,5S", 0.5),
        ("PT90S", 90),
        ("+PT1M", 60),
        ("P36500D", 3153600000),
    ],
)
def test_duration(written: str, seconds: float) -> None:
    assert settings.parse_seconds(written) == seconds


@pytest.mark.parametrize(
    "written",
    [
        *("", " ", "s", "P", "PT", "P1DT", "T1H"),
        *("90", "0", "1.5", "inf", "nan"),  # of what? Only in settings it is seconds
        *("1h 30m", "1h, 30m", "1h30", "1H", "1.2.3s", "1\N{ARABIC-INDIC DIGIT ONE}s"),
        *("pt1h", "P1H", "PT1D", "PT1H\n", "PT1H1", "PT1H1H", "P1e9D", "P1..5D"),
        *("1mm", "1y"),  # durationpy's, not Go's: a month of 30 days, a year of 365
        *("P0001-01-01T00:00:00", "P20030101T000000"),  # ISO 8601's, rare: written as a date
        *("9" * 400 + "h", f"P{'9' * 400}D"),
    ],
)
def test_no_duration(written: str) -> None:
    with pytest.raises(ValueError, match="must be a duration such as 90s, 1h30m"):
        settings.parse_seconds(written)


@pytest.mark.parametrize(
    ("written", "why"),
    [
        *((word, "years or months") for word in ("P1Y", "P1M", "P1Y2M3DT4H", "P0.5Y", "-P1M")),
        *((word, "longer than 0 s") for word in ("0s", "-5s", "PT0S", "-PT5S", "0.1ns")),
        *((word, "not be longer than 876000h") for word in ("876001h", "P36501D")),
    ],
)
def test_duration_that_is_not_taken(written: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        settings.parse_seconds(written)


@pytest.mark.parametrize("text", ["90s", "3m", "168h", "0.25s", "36h"])
def test_duration_is_shown_as_it_may_be_written(text: str) -> None:
    assert settings.go_duration(settings.parse_seconds(text)) == text


def test_settings_within_settings() -> None:
    assert load(T_DEEP="5").inner == Inner(deep=5)
    assert load(OLD_DEEP="6").inner == Inner(deep=6)
    assert load().inner == Inner()


def test_what_is_declared_comes_in_order_and_with_its_place() -> None:
    found = list(settings.declared(Some))
    assert [one.names[0] for one in found][:2] == ["T_STR", "T_BOOL"]
    assert found[-1].path == ("inner", "deep")
    assert found[-1].names == ("T_DEEP", "OLD_DEEP")


def test_refused_name_is_not_also_unknown() -> None:
    with pytest.raises(ConfigError) as caught:
        settings.read(Some, {"T_GONE": "1"}, "T_", {"T_GONE": "it is gone"})
    assert caught.value.problems == ("T_GONE: it is gone",)


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("localhost:1", True),
        ("127.0.0.1:1", True),
        ("127.8.8.8:1", True),
        ("[::1]:1", True),
        ("192.168.122.251:1", False),
        ("agent.example:1", False),
        ("0.0.0.0:1", False),
    ],
)
def test_loopback(url: str, loopback: bool) -> None:
    parsed = load(T_URL=url).url
    assert parsed.is_loopback is loopback
    assert str(parsed) == url


def test_url_with_a_place_for_the_port_reads_as_written() -> None:
    assert str(load(T_URL="bridge:{port}").url) == "bridge:{port}"

"""The spellings that depend on QEMU's version. tests/unit/test_cmdline.py has the command lines."""

from __future__ import annotations

import pytest

from supervisor.qemu.version import Version, pass_file


def test_versions_are_compared_as_numbers() -> None:
    assert Version(7, 2, 22) < Version(8, 2) < Version(9, 1) < Version(10, 0, 2) < Version(11, 1)


def test_a_version_is_read_from_the_greeting() -> None:
    answer = {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian 1:10.0.2+ds-2"}
    assert str(Version.of(answer)) == "10.0.2"


@pytest.mark.parametrize("answer", [{}, {"qemu": {"major": 7}}, {"qemu": None}, {"qemu": 7}])
def test_an_answer_without_a_version_is_none(answer: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError)):
        Version.of(answer)


@pytest.mark.parametrize(
    ("version", "command", "uri", "forget"),
    [
        (Version(7, 2), "getfd", "fd:state", None),
        (Version(8, 1, 9), "getfd", "fd:state", None),
        (Version(8, 2), "add-fd", "file:/dev/fdset/1", "remove-fd"),
        (Version(9, 1), "add-fd", "file:/dev/fdset/1", "remove-fd"),
        (Version(10, 0, 2), "add-fd", "file:/dev/fdset/1", "remove-fd"),
        (Version(11, 1, 3), "add-fd", "file:/dev/fdset/1", "remove-fd"),
    ],
    ids=str,
)
def test_how_a_migrations_file_is_passed(
    version: Version, command: str, uri: str, forget: str | None
) -> None:
    passing = pass_file(version)
    assert (passing.command, passing.uri, passing.forget) == (command, uri, forget)

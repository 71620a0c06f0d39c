"""The pages of the documentation, as tests read them: blocks, links, tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
    *sorted((ROOT / "docs").rglob("*.md")),
]

#: A shell block and, if the line before it is a comment, that comment's text.
_BLOCK = re.compile(r"(?:^<!-- ([^\n]*) -->\n)?^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_CODE = re.compile(r"`([^`]+)`")


@attrs.frozen
class Block:
    """A shell block. ``mark`` is ``run``, ``not run: REASON``, or empty if nobody wrote one."""

    page: str
    line: int
    mark: str
    commands: str


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start(2)) + 1
        yield Block(name(page), line, found[1] or "", found[2])


def links(page: Path) -> list[str]:
    """The targets of all links that lead to a file or a heading of this repository."""
    found = _LINK.findall(_FENCED.sub("", page.read_text()))
    return [target for target in found if "://" not in target]


def anchors(page: Path) -> set[str]:
    """What links may have after ``#``: headings, written as GitHub writes them."""
    headings = _HEADING.findall(_FENCED.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


def section(page: Path, heading: str) -> str:
    """The text below a heading, down to the next one of the same level or above."""
    text = page.read_text()
    start = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert start, f"{name(page)} has no heading {heading!r}"
    rest = text[start.end() :]
    end = re.search(rf"^#{{1,{len(start[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(page: Path, heading: str) -> list[list[str]]:
    """The cells of all tables below a heading, without the tables' heads."""
    lines = section(page, heading).splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")]
    heads = [index - 1 for index, row in enumerate(cells) if set("".join(row)) <= set("-: ")]
    skipped = {*heads, *(head + 1 for head in heads)}
    return [[cell.strip() for cell in row] for n, row in enumerate(cells) if n not in skipped]


def words(page: Path, heading: str, column: int = 0) -> list[str]:
    """What is written as code in one column of the tables below a heading."""
    return [word for row in rows(page, heading) for word in _CODE.findall(row[column])]

"""The page's files, as they are."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

import pytest

from supervisor.api.http.page import DIRECTORY

if TYPE_CHECKING:
    from pathlib import Path

PUBLISHED = {
    "htm-preact.mjs": "72284e8e9079c87817145df1110f74e8a2aa040b2fc384922e18dfcb46fc1fd7",
    "xterm.css": "854a7c0fb70e8b1a083c16797ab827299fb18744f5ad34f227b48337e33293c6",
    "xterm.mjs": "b336ec65a086c056d4804b3d4c2347da5663d3f23c3f25be866467bd8857ad59",
}
OURS = sorted(DIRECTORY.glob("*.mjs"))


def test_files_of_others_are_as_published() -> None:
    vendor = DIRECTORY / "vendor"
    sums = {name: hashlib.sha256((vendor / name).read_bytes()).hexdigest() for name in PUBLISHED}
    assert sums == PUBLISHED
    readme = (vendor / "README.md").read_text()
    assert all(file.name in readme for file in vendor.iterdir() if file.name != "README.md")


@pytest.mark.parametrize("file", OURS, ids=[file.name for file in OURS])
def test_scripts_import_what_is_here_and_make_no_markup(file: Path) -> None:
    text = file.read_text()
    for name in re.findall(r'from "(.*?)"', text):
        assert (file.parent / name).is_file(), name
    # The page's policy would refuse it, in browsers that know Trusted Types.
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)
    assert "http://" not in text
    assert "https://" not in text

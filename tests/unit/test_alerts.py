"""Alerts and dashboard: of metrics that there are, and as Prometheus' own promtool reads them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.cli import main
from tests.support import pages

if TYPE_CHECKING:
    from collections.abc import Iterator

PROMTOOL = pages.ROOT / ".qemu/promtool"
SHARE = pages.ROOT / "supervisor/share/qmp-supervisor"
ALERTS, DASHBOARD = SHARE / "alerts.yml", SHARE / "grafana-dashboard.json"

promtool = pytest.mark.skipif(not PROMTOOL.exists(), reason="scripts/test could not fetch promtool")


def check(*words: str | Path, **options: Any) -> None:
    done = subprocess.run(
        [PROMTOOL, *words], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr


def expressions() -> Iterator[str]:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


def test_of_known_metrics() -> None:
    known = set(pages.words(pages.ROOT / "docs/reference/metrics.md", "Metrics"))
    text = ALERTS.read_text() + "\n".join(expressions())
    named = {name.removesuffix("_bucket") for name in re.findall(r"qmp_supervisor_\w+", text)}
    assert named <= known
    # What is wrong or full is alerted of, or at least shown.
    assert known - named <= {"qmp_supervisor_build_info"}


def test_of_known_commands() -> None:
    """What an alert tells its reader to type is there."""
    named = re.findall(r"qmp-supervisor ([a-z-]+)((?: --[a-z-]+)*)", ALERTS.read_text())
    assert named
    for command, options in named:
        main([command, *options.split(), "--help"], standalone_mode=False)


@promtool
def test_rules() -> None:
    check("check", "rules", ALERTS)


@promtool
def test_when_alerts_fire(tmp_path: Path) -> None:
    cases = tmp_path / "cases.yml"
    text = Path(__file__).with_name("alerts_test.yml").read_text()
    cases.write_text(text.replace("RULES", str(ALERTS)))
    check("test", "rules", cases)


@promtool
def test_dashboard(tmp_path: Path) -> None:
    """Its questions are ones that Prometheus can answer."""
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$instance", ".*")}
        for number, expression in enumerate(expressions())
    ]
    file = tmp_path / "panels.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    check("check", "rules", file)

"""What openapi.yaml says, held against a supervisor by schemathesis: it makes the requests."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.world import World

#: Consoles are WebSockets, events do not end, and a VM that is deleted is no example for the rest.
LEFT_OUT = ["--exclude-path-regex", "console|/events$", "--exclude-method", "DELETE"]


async def test_every_operation(world: World, tmp_path: Path) -> None:
    world.scenario(agent="reference")
    async with world.serve(MANAGER_MAX_VMS="20", MANAGER_QUEUE="0") as supervisor:
        vm = await supervisor.run()
        # What a schema cannot say of a value is refused as well: a certificate is one.
        (tmp_path / "schemathesis.toml").write_text(f"""
            [parameters]
            vm_id = "{vm["id"]}"
            [[operations]]
            include-operation-id = "postVmsVmIdAttestation"
            checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 404, 409, "5xx"]
        """)
        words = [sys.executable, "-m", "schemathesis.cli", "run"]
        words += [f"{supervisor.http.base_url}/openapi.yaml", *LEFT_OUT]
        words += ["--phases", "examples,coverage,fuzzing", "--max-examples", "5"]
        words += ["--generation-deterministic", "--no-color"]
        done = await trio.run_process(
            words, check=False, capture_stdout=True, stderr=subprocess.STDOUT, cwd=tmp_path
        )
    assert done.returncode == 0, done.stdout.decode()

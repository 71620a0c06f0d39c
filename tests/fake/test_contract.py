"""What openapi.yaml says, held against a supervisor by schemathesis: it makes the requests."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import trio

from supervisor.api.auth import tokens
from supervisor.caller import Role

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.world import World

#: Consoles are WebSockets, events do not end, and a VM that is deleted is no example for the rest.
LEFT_OUT = ["--exclude-path-regex", "console|/events$", "--exclude-method", "DELETE"]
#: What no schema can say: that a value is a certificate, or the digest of the body; that a form
#: excludes headers; that a member or a parameter needs a fleet.
BEYOND_ANY_SCHEMA = [
    "getVms",
    "postRun",
    "postVmsVmIdAttestation",
    "putVmsVmIdAlgorithm",
    "putVmsVmIdDataNumber",
]


async def test_every_operation(world: World, tmp_path: Path) -> None:
    _, secret = tokens.create(tmp_path / "tokens", "admin", Role.ADMIN, None, tokens.now())
    bearer = f"Bearer {secret}"
    world.scenario(agent="reference")
    settings = {"MANAGER_AUTH": "on", "MANAGER_TOKENS": str(tmp_path / "tokens")}
    async with world.serve(**settings, MANAGER_MAX_VMS="20", MANAGER_QUEUE="0") as supervisor:
        supervisor.http.headers["Authorization"] = bearer
        vm = await supervisor.run()
        (tmp_path / "schemathesis.toml").write_text(f"""
            # What an agent refuses is a bad gateway, and no fault of ours.
            [checks]
            not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 502, 503, 504]
            [parameters]
            vm_id = "{vm["id"]}"
            [[operations]]
            include-operation-id = {BEYOND_ANY_SCHEMA}
            checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 404, 409, "5xx"]
        """)
        words = [sys.executable, "-m", "schemathesis.cli", "run"]
        words += [f"{supervisor.http.base_url}/openapi.yaml", "-H", f"Authorization: {bearer}"]
        words += ["--phases", "examples,coverage,fuzzing", "--max-examples", "5"]
        words += ["--generation-deterministic", "--no-color", *LEFT_OUT]
        done = await trio.run_process(
            words, check=False, capture_stdout=True, stderr=subprocess.STDOUT, cwd=tmp_path
        )
    assert done.returncode == 0, done.stdout.decode()

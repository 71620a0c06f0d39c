"""A computation and its answer: nowhere but where they are meant to be, with a real guest."""

from __future__ import annotations

import json

from tests.support import secrets
from tests.vm.conftest import started_with_template
from tests.vm.test_run import computation

SECRET = "the-computation-4f1d8a6e-nobody-else-may-see-it"
OF_ENVIRONMENT = b"a-key-in-the-supervisors-environment-6610fe"


def test_a_secret_is_told_to_nobody_who_did_not_ask_for_it() -> None:
    wanted = (SECRET.encode(), OF_ENVIRONMENT)
    with started_with_template(
        A_KEY=OF_ENVIRONMENT.decode(), MANAGER_LOG_LEVEL="debug"
    ) as supervisor:
        run = supervisor.run(computation(SECRET))
        assert SECRET in run["computation"]
        vm_id = run["id"]
        shown = supervisor.show(vm_id)
        paths = ["/vms", f"/vms/{vm_id}", f"/vms/{vm_id}/status", "/events?after=0&limit=1000"]
        answers = [(path, supervisor.http.get(path).content) for path in [*paths, "/metrics"]]
        assert not secrets.found(answers, *wanted)
        assert not secrets.found(secrets.process(shown["pid"]), *wanted)
        # The console is among the files.
        assert not secrets.found(secrets.files(supervisor.tmp), *wanted)
        assert not secrets.open_to_others(supervisor.tmp)
        log = [(line["message"], json.dumps(line).encode()) for line in supervisor.log]
        assert not secrets.found(log, *wanted)

"""What a guest's processor says, relayed, and held against what the guest was launched with.

The guests are the stand-in for QEMU and for an agent; the reports and quotes are signed by
processors that the tests make, under roots that the supervisor takes for AMD's and Intel's here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
import shutil
import struct
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from click.testing import CliRunner

from supervisor.agent.reference import tls
from supervisor.api import words
from supervisor.api.http import json_body
from supervisor.cli import main
from supervisor.qemu import firmware
from supervisor.tee import binding, verdict
from supervisor.tee.snp import endorsement
from supervisor.tee.tdx import pck
from tests.fake.test_cli import cli
from tests.fake.test_control import events_of
from tests.fake.test_tee import milan, on
from tests.support import hosts
from tests.support.amd import NOW, amd
from tests.support.clones import post, run
from tests.support.intel import intel
from tests.support.tenants import ALICE, BOB, Asking

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import httpx

    from tests.support.world import Supervisor, World

__all__ = ["milan"]

NONCE = "0123456789abcdef"
REPORT_DATA = bytes.fromhex(NONCE).ljust(64, b"\0")
HOST_DATA = hashlib.sha256(b"{}").digest()
VCEK = UUID("63da758d-e664-4564-adc5-f4b93be8accd")


class Processor:
    """What the guests' agents find, by the report data that they ask with."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()

    def says(self, evidence: bytes, report_data: bytes = REPORT_DATA) -> None:
        (self.directory / report_data.hex()).write_bytes(evidence)


@pytest.fixture
def processor(milan: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Processor:
    found = Processor(tmp_path / "evidence")
    milan.scenario(evidence=str(found.directory))
    monkeypatch.setattr(endorsement, "roots", lambda: (amd().roots,))
    at_noon(monkeypatch)
    return found


def at_noon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests sign is valid then."""
    judge = verdict.judge
    monkeypatch.setattr(verdict, "judge", lambda *given, at: judge(*given, at=NOW))


def with_table(report: bytes, leaf: bytes) -> bytes:
    """A report as guests get it from a host with a certificate."""
    entry = struct.pack("<16sII", VCEK.bytes, 48, len(leaf))
    return report + (entry + bytes(24) + leaf).ljust(0x4000, b"\0")


CHIP = amd().vcek()
GOOD: dict[str, Any] = {"report_data": REPORT_DATA, "host_data": HOST_DATA, "policy": 0x30000}


async def ask(
    supervisor: Supervisor, vm_id: str, *, verify: bool = True, **body: Any
) -> httpx.Response:
    params = {"verify": "1"} if verify else {}
    sent = {"nonce": NONCE, **body}
    return await supervisor.http.post(f"/vms/{vm_id}/attestation", json=sent, params=params)


def verdicts(answer: httpx.Response) -> dict[str, str]:
    return {one["field"]: one["verdict"] for one in answer.json()["verdict"]["checks"]}


async def test_owner_gets_the_report_as_the_agent_sent_it(
    milan: World, processor: Processor
) -> None:
    evidence = with_table(CHIP.report(**GOOD), CHIP.der)
    processor.says(evidence)
    async with milan.serve() as supervisor:
        vm_id = (await run(supervisor.http, tee="sev-snp"))["id"]
        answer = await ask(supervisor, vm_id, verify=False)
        assert answer.json() == {
            "vm": vm_id,
            "tee": "sev-snp",
            "report_data": REPORT_DATA.hex(),
            "evidence": base64.b64encode(evidence).decode(),
            "certificate": None,
        }
        assert supervisor.vm(vm_id).record.attested_at is None


@pytest.mark.parametrize("in_pieces", [False, True])
async def test_report_is_held_against_the_launch(
    milan: World, processor: Processor, in_pieces: bool
) -> None:
    milan.scenario(evidence=str(processor.directory), evidence_in_pieces=in_pieces)
    processor.says(with_table(CHIP.report(**GOOD), CHIP.der))
    async with milan.serve() as supervisor:
        vm_id = (await run(supervisor.http, tee="sev-snp"))["id"]
        before = datetime.now(UTC)
        answer = await ask(supervisor, vm_id)
        assert answer.json()["verdict"]["verified"], answer.text
        assert verdicts(answer)["report data"] == verdicts(answer)["host data"] == "ok"
        record = supervisor.vm(vm_id).record
        assert record.attested_at
        assert record.attested_at >= before
        (row,) = (await supervisor.http.get("/vms")).json()["vms"]
        assert (row["tee"], row["attested"]["by"]) == ("sev-snp", None)
        # Of these eight bytes of firmware nobody knows what they come to.
        assert row["attested"]["not_compared"] == ["measurement"]
        (told,) = [one for one in events_of(milan, vm_id) if one["event"] == "attested"]
        assert (told["by"], told["not_compared"]) == ("", ["measurement"])


async def test_report_is_of_what_was_launched(milan: World, processor: Processor) -> None:
    ovmf = firmware.in_one_file("amd-sev-snp")
    async with milan.serve(MANAGER_TEE_FIRMWARE=str(ovmf)) as supervisor:
        vm_id = (await run(supervisor.http, tee="sev-snp"))["id"]
        digest = bytes.fromhex(supervisor.vm(vm_id).record.measurement.digest)
        processor.says(with_table(CHIP.report(**GOOD), CHIP.der))
        assert verdicts(await ask(supervisor, vm_id))["measurement"] == "failed"
        assert supervisor.vm(vm_id).record.attested_at is None
        processor.says(with_table(CHIP.report(**GOOD, measurement=digest), CHIP.der))
        assert verdicts(await ask(supervisor, vm_id))["measurement"] == "ok"
        shown = (await supervisor.http.get(f"/vms/{vm_id}")).json()
        assert shown["attested"]["not_compared"] == []


@pytest.mark.parametrize(
    ("evidence", "field", "found"),
    [
        (lambda: CHIP.report(**GOOD | {"report_data": bytes(64)}), "report data", "failed"),
        (lambda: CHIP.report(**GOOD | {"host_data": bytes(32)}), "host data", "failed"),
        (lambda: CHIP.report(**GOOD | {"policy": 0xB0000}), "policy: debug", "insecure"),
        (lambda: CHIP.report(**GOOD | {"policy": 0x20000}), "policy: smt", "failed"),
        (lambda: CHIP.report(**GOOD | {"vmpl": 1}), "VMPL", "failed"),
        (lambda: amd().vcek().report(**GOOD), "signature", "failed"),
        (lambda: CHIP.report(**GOOD, tcb=bytes(8)), "reported TCB: snp", "failed"),
        (lambda: b"", "evidence", "failed"),
        (lambda: bytes(1184), "evidence", "failed"),
        (lambda: bytes(200_000), "evidence", "failed"),
    ],
)
async def test_wrong_report_is_told_and_goes_on_no_record(
    milan: World,
    processor: Processor,
    evidence: Callable[[], bytes],
    field: str,
    found: str,
) -> None:
    processor.says(with_table(evidence(), CHIP.der))
    async with milan.serve() as supervisor:
        vm_id = (await run(supervisor.http, tee="sev-snp"))["id"]
        answer = await ask(supervisor, vm_id)
        assert answer.status_code == 200
        assert answer.json()["verdict"]["verified"] is False
        assert verdicts(answer)[field] == found
        assert supervisor.vm(vm_id).record.attested_at is None


async def test_caller_brings_the_certificate(milan: World, processor: Processor) -> None:
    processor.says(CHIP.report(**GOOD))
    async with milan.serve() as supervisor:
        vm_id = (await run(supervisor.http, tee="sev-snp"))["id"]
        without = await ask(supervisor, vm_id)
        (check,) = without.json()["verdict"]["checks"]
        assert "say --leaf" in check["why"]
        pem = base64.encodebytes(CHIP.der).decode()
        framed = f"-----BEGIN CERTIFICATE-----\n{pem}-----END CERTIFICATE-----\n"
        assert (await ask(supervisor, vm_id, leaf=framed)).json()["verdict"]["verified"]


async def test_quote_of_tdx(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = Processor(tmp_path / "evidence")
    world.scenario(evidence=str(processor.directory))
    monkeypatch.setattr(pck, "root", lambda: intel().root)
    at_noon(monkeypatch)
    bound = HOST_DATA.ljust(48, b"\0")
    async with on(hosts.TDX_XEON, world, monkeypatch).serve() as supervisor:
        vm_id = (await run(supervisor.http, tee="tdx"))["id"]
        processor.says(intel().quote(report_data=REPORT_DATA, mrconfigid=bound))
        answer = await ask(supervisor, vm_id)
        assert answer.json()["verdict"]["verified"], answer.text
        processor.says(intel().quote(report_data=REPORT_DATA))
        shown = (await supervisor.http.get(f"/vms/{vm_id}")).json()
        assert shown["attested"]["not_compared"] == ["MRTD"]
        assert verdicts(await ask(supervisor, vm_id))["MRCONFIGID"] == "failed"
        guest = await world.guest()
        types = [await guest.until("Attestation") for _ in range(2)]
        assert [one["type"] for one in types] == [4, 4]


async def test_agent_is_shown_the_credential(milan: World, processor: Processor,
                                             monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    processor.says(CHIP.report(**GOOD))
    asking = Asking(monkeypatch)
    async with milan.serve(MANAGER_AUTH="on") as supervisor:
        with asking(ALICE):
            begun = (await post(supervisor.http, tee="sev-snp")).json()
            assert (await ask(supervisor, begun["id"], verify=False)).status_code == 200
        guest = await milan.guest()
        shown = (await guest.until("Attestation"))["metadata"]["authorization"]
        assert shown == f"Bearer {begun['credential']}"


async def test_who_asked_is_on_record(milan: World, processor: Processor,
                                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    processor.says(with_table(CHIP.report(**GOOD), CHIP.der))
    asking = Asking(monkeypatch)
    async with milan.serve(MANAGER_AUTH="on") as supervisor:
        with asking(ALICE):
            vm_id = (await post(supervisor.http, tee="sev-snp")).json()["id"]
        with asking(BOB):
            assert (await ask(supervisor, vm_id)).status_code == 404
        with asking(ALICE):
            assert (await ask(supervisor, vm_id)).json()["verdict"]["verified"]
            shown = (await supervisor.http.get(f"/vms/{vm_id}")).json()
            assert shown["attested"]["by"] == ALICE.name


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"nonce": ""}, "nonce is 2 to 128 hexadecimal digits"),
        ({"nonce": "00" * 65}, "has 65 bytes, not 64"),
        ({"nonce": "xy"}, "is not hex"),
        ({"nonce": 7}, "it is no string"),
        ({"nonce": None}, "it is no string"),
        ({"leaf": "x"}, "leaf: not a certificate"),
        ({"leaf": "x" * 40_000}, "leaf: it is no string, or too long"),
        ({"leaf": 1}, "leaf: it is no string"),
        ({"nonse": "00"}, "'nonse' is not a member"),
    ],
)
async def test_bad_requests(
    milan: World, processor: Processor, body: dict[str, Any], problem: str
) -> None:
    async with milan.serve() as supervisor:
        vm_id = (await run(supervisor.http, tee="sev-snp"))["id"]
        answer = await ask(supervisor, vm_id, **body)
        assert answer.status_code == 400
        assert problem in answer.json()["detail"]


async def test_nonce_is_needed(milan: World, processor: Processor) -> None:
    async with milan.serve() as supervisor:
        vm_id = (await run(supervisor.http, tee="sev-snp"))["id"]
        answer = await supervisor.http.post(f"/vms/{vm_id}/attestation", json={})
        assert (answer.status_code, answer.json()["member"]) == (400, "nonce")
        assert answer.json()["detail"] == "'nonce' is missing; the members are nonce, leaf"


async def test_vms_without_reports(milan: World) -> None:
    async with milan.serve() as supervisor:
        for tee, words in (("none", "no processor reports"), ("sev", "have no report")):
            vm_id = (await run(supervisor.http, tee=tee))["id"]
            answer = await ask(supervisor, vm_id)
            assert answer.status_code == 409
            assert words in answer.json()["detail"]


async def test_agent_without_a_report(milan: World) -> None:
    async with milan.serve() as supervisor:
        vm_id = (await run(supervisor.http, tee="sev-snp"))["id"]
        answer = await ask(supervisor, vm_id)
        assert answer.status_code == 502
        assert "this guest has no report" in answer.json()["detail"]


async def test_evidence_is_bounded(milan: World, processor: Processor) -> None:
    milan.scenario(evidence=str(processor.directory), evidence_in_pieces=True)
    processor.says(bytes(300_000))
    async with milan.serve() as supervisor:
        vm_id = (await run(supervisor.http, tee="sev-snp"))["id"]
        answer = await ask(supervisor, vm_id)
        assert answer.status_code == 502
        assert "longer than 262144 bytes" in answer.json()["detail"]


async def test_paused_and_ended_vms_are_not_asked(milan: World, processor: Processor) -> None:
    async with milan.serve() as supervisor:
        vm_id = (await run(supervisor.http, tee="sev-snp"))["id"]
        for action in ("pause", "shutdown"):
            assert (await supervisor.http.post(f"/vms/{vm_id}/{action}")).status_code == 200
            answer = await ask(supervisor, vm_id)
            assert answer.status_code == 409
            assert "cannot be asked now" in answer.json()["detail"]


async def test_next_boot_is_not_attested(milan: World, processor: Processor) -> None:
    processor.says(with_table(CHIP.report(**GOOD), CHIP.der))
    async with milan.serve(MANAGER_RESTART_BACKOFF="10ms") as supervisor:
        vm_id = (await run(supervisor.http, tee="sev-snp", restart="on-failure"))["id"]
        assert (await ask(supervisor, vm_id)).json()["verdict"]["verified"]
        guest = await milan.guest()
        await guest.exit(1)
        await supervisor.wait_record(vm_id, lambda record: record.restarts == 1)
        assert supervisor.vm(vm_id).record.attested_at is None


# --- an agent with a TLS key of its own -------------------------------------------------------


OWN = {"MANAGER_AGENT_GRPC_CLIENT_TLS": "true", "MANAGER_AGENT_GRPC_OWN_CERTS": "true"}


class Keyed:
    """Of an agent: its files, and what a report says of its key."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        identity = tls.make_identity()
        (directory / "key.pem").write_bytes(identity.key)
        for name in ("cert.pem", "ca.pem"):
            (directory / name).write_bytes(identity.certificate)
        self.directory, self.certificate = directory, identity.certificate
        self.report_data = binding.report_data(identity.public_key, REPORT_DATA)


@pytest.fixture
def keyed(milan: World, processor: Processor, tmp_path: Path) -> Keyed:
    found = Keyed(tmp_path / "tls")
    milan.scenario(evidence=str(processor.directory), agent_tls=str(found.directory))
    return found


async def test_report_is_bound_to_the_agents_key(
    milan: World, processor: Processor, keyed: Keyed
) -> None:
    report = CHIP.report(**GOOD | {"report_data": keyed.report_data})
    processor.says(with_table(report, CHIP.der))
    async with milan.serve(**OWN) as supervisor:
        vm_id = (await run(supervisor.http, tee="sev-snp"))["id"]
        answer = await ask(supervisor, vm_id)
        assert answer.json()["verdict"]["verified"], answer.text
        assert answer.json()["report_data"] == keyed.report_data.hex()
        assert answer.json()["certificate"].encode() == keyed.certificate
        # An owner who believes nothing of this verifies it with what he saw himself.
        (keyed.directory / "evidence").write_text(answer.json()["evidence"])
        arguments = ["verify", "snp", str(keyed.directory / "evidence"), "--nonce", NONCE,
                     "--tls-certificate", str(keyed.directory / "cert.pem"), "--json"]  # fmt: skip
        shown = json.loads(CliRunner().invoke(main, arguments).output)
        (said,) = [one for one in shown["checks"] if one["field"] == "report data"]
        assert said["verdict"] == "ok"


async def test_report_without_the_key_is_refused(
    milan: World, processor: Processor, keyed: Keyed, tmp_path: Path
) -> None:
    """As one in between would have it: of his own key, or of the nonce alone."""
    another = Keyed(tmp_path / "another")
    async with milan.serve(**OWN) as supervisor:
        vm_id = (await run(supervisor.http, tee="sev-snp"))["id"]
        for said in (REPORT_DATA, another.report_data):
            processor.says(with_table(CHIP.report(**GOOD | {"report_data": said}), CHIP.der))
            answer = await ask(supervisor, vm_id)
            assert verdicts(answer)["report data"] == "failed"


async def test_agent_that_is_started_again_has_another_key(
    milan: World, processor: Processor, keyed: Keyed, tmp_path: Path
) -> None:
    """Each connection takes the certificate that it is shown."""
    async with milan.serve(**OWN, MANAGER_HEARTBEAT="50ms") as supervisor:
        vm = supervisor.vm((await run(supervisor.http, tee="sev-snp"))["id"])
        guest = await milan.guest()
        await guest.order("end-agent", how="signal 9")
        await vm.until(lambda: vm.agent_lost)
        another = Keyed(tmp_path / "another")
        shutil.copytree(another.directory, keyed.directory, dirs_exist_ok=True)
        await guest.order("start-agent", kind="recorder")
        await vm.until(lambda: vm.agent_ready)
        report = CHIP.report(**GOOD | {"report_data": another.report_data})
        processor.says(with_table(report, CHIP.der))
        answer = await ask(supervisor, vm.id)
        assert answer.json()["certificate"].encode() == another.certificate
        assert answer.json()["verdict"]["verified"], answer.text


def test_guest_and_verifier_mean_the_same() -> None:
    nonce = bytes(64)
    assert tls.binding(b"key", nonce) == binding.report_data(b"key", nonce)
    assert binding.report_data(b"key", b"") == binding.report_data(b"key", nonce)


# --- the command ----------------------------------------------------------------------------


async def test_command_that_it_prints_verifies_what_it_wrote(
    milan: World, processor: Processor, keyed: Keyed, tmp_path: Path
) -> None:
    content = with_table(CHIP.report(**GOOD | {"report_data": keyed.report_data}), CHIP.der)
    processor.says(content)
    written, computation = tmp_path / "a report; ls", tmp_path / "computation"
    computation.write_bytes(b"{}")
    async with milan.serve(**OWN) as supervisor:
        vm_id = (await run(supervisor.http, tee="sev-snp"))["id"]
        words = (vm_id[:8], "--nonce", NONCE, "--output", str(written))
        done = await cli(supervisor)("evidence", *words)
        assert written.read_bytes() == content
        assert "the one that your own connection" in done.stderr.decode()
        command = (
            done.stdout.decode()
            .replace("CERTIFICATE", str(keyed.directory / "cert.pem"))
            .replace("COMPUTATION", str(computation))
        )
        _, *arguments = shlex.split(command)
        shown = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).output)
        found = {one["field"]: one["verdict"] for one in shown["checks"]}
        assert (found["report data"], found["host data"]) == ("ok", "ok")
        told = await cli(supervisor).json("evidence", *words)
        assert (told["verify"], told["nonce"]) == (done.stdout.decode().strip(), NONCE)


async def test_nonce_is_new_each_time(
    milan: World, processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent has no report for it; the supervisor was asked for one all the same."""
    asked: list[bytes] = []
    of_wire = words.nonce

    def noting(given: object) -> words.Nonce:
        asked.append(of_wire(given))
        return words.Nonce(asked[-1])

    monkeypatch.setattr(json_body, "nonce", noting)
    async with milan.serve() as supervisor:
        vm_id = (await run(supervisor.http, tee="sev-snp"))["id"]
        for _ in range(2):
            written = tmp_path / "report.bin"
            typed = ("evidence", vm_id, "--output", str(written))
            assert (await cli(supervisor)(*typed, check=False)).returncode == 1
            assert not written.exists()
    first, second = asked
    assert first != second
    assert first[32:] == second[32:] == bytes(32)

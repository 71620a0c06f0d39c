"""Runs that ask for a confidential guest: on this host, and on hosts that could start one.

Such a host's facts are data; QEMU is the stand-in, which takes any argument. So this shows what a
run is launched with, and not that it starts.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import grpc
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from supervisor import at_start
from supervisor.config import load
from supervisor.errors import HostError
from supervisor.pb import manager_pb2, vm_pb2
from supervisor.qemu import accel, firmware
from supervisor.tee import corim, reading
from tests.fake.test_cli import cli
from tests.support import hosts
from tests.support.clones import clonable, pool, post, ready, run
from tests.support.tenants import ALICE, Asking
from tests.support.world import PATIENCE_S, in_thread
from tests.unit.test_corim import verified

if TYPE_CHECKING:
    from supervisor.tee.facts import HostFacts
    from tests.support.world import World

HOST_DATA = base64.b64encode(hashlib.sha256(b"{}").digest()).decode()
OPEN_TO_DEBUG = "the host may read and change the guest's memory"


@pytest.fixture
def milan(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    return on(hosts.MILAN, world, monkeypatch)


def on(facts: HostFacts, world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """The world on another host; its KVM works."""
    monkeypatch.setattr(accel, "host_facts", lambda *_, **__: facts)
    monkeypatch.setattr(reading, "numbers", lambda: facts.capacity or {})
    firmware = world.directory / "OVMF.fd"
    firmware.write_bytes(b"firmware")
    world.settings |= {
        "MANAGER_QEMU_ENABLE_SEV": "auto",
        "MANAGER_TEE": "none",
        "MANAGER_TEE_FIRMWARE": str(firmware),
        "MANAGER_QEMU_SEV_CBITPOS": "51",
    }
    return world


def made(shown: dict[str, Any]) -> dict[str, str]:
    """The members of the object of its technology."""
    objects = (word for word in shown["argv"] if word.startswith(("sev-guest", "sev-snp-guest")))
    return dict(pair.split("=", 1) for pair in next(objects).split(",")[1:])


# --- hosts that cannot ----------------------------------------------------------------------


@pytest.mark.parametrize("tee", ["sev", "sev-es", "sev-snp", "tdx"])
async def test_this_host_says_what_is_missing(world: World, tee: str) -> None:
    async with world.serve() as supervisor:
        answer = await post(supervisor.http, tee=tee)
        problem = answer.json()
        assert (answer.status_code, problem["title"]) == (409, "Tee unavailable")
        assert problem["detail"].startswith(f"this host starts no {tee.upper()} guest: ")
        assert not len(supervisor.running.service.vms)
        assert supervisor.running.service.vms.admission.taken.vms == 0


async def test_this_host_says_so_over_grpc(world: World) -> None:
    async with world.serve() as supervisor:
        request = manager_pb2.RunRequest(computation=b"{}")
        call = partial(
            supervisor.manager.Run, request, metadata=[("tee", "sev-snp")], timeout=PATIENCE_S
        )
        with pytest.raises(grpc.RpcError) as raised:
            await in_thread(call)
        assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "this host starts no SEV-SNP guest" in str(raised.value.details())


async def test_auto_on_a_host_without_any_is_a_plain_vm(world: World) -> None:
    async with world.serve() as supervisor:
        shown = await run(supervisor.http, tee="auto", tee_policy="single-socket")
        assert (shown["tee"], shown["tee_policy"]) == ("none", None)
        (why,) = shown["insecure"]
        assert "plain VM" in why


async def test_wrong_c_bit_is_refused(
    world: World, milan: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.serve(MANAGER_QEMU_SEV_CBITPOS="47") as supervisor:
        answer = await post(supervisor.http, tee="sev")
        assert answer.status_code == 409
        assert "this host's C-bit is 51" in answer.json()["detail"]


# --- hosts that can -------------------------------------------------------------------------


async def test_guest_is_bound_to_its_computation(milan: World) -> None:
    async with milan.serve() as supervisor:
        answer = (await post(supervisor.http, tee="sev-snp")).json()
        shown = (await supervisor.http.get(f"/vms/{answer['id']}")).json()
        assert (answer["tee"], shown["tee"]) == ("sev-snp", "sev-snp")
        assert (made(shown)["host-data"], made(shown)["policy"]) == (HOST_DATA, "0x30000")
        assert shown["insecure"] == []
        assert "no-debug,smt," in shown["tee_policy"]
        (row,) = (await supervisor.http.get("/vms")).json()["vms"]
        assert row["tee"] == "sev-snp"


async def test_guest_of_tdx(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with on(hosts.TDX_XEON, world, monkeypatch).serve() as supervisor:
        shown = await run(supervisor.http, tee="tdx")
        (word,) = (word for word in shown["argv"] if "tdx-guest" in word)
        mrconfigid = base64.b64encode(hashlib.sha256(b"{}").digest() + bytes(16)).decode()
        assert f'"mrconfigid":"{mrconfigid}"' in word
        assert (shown["tee"], shown["tee_policy"], shown["insecure"]) == ("tdx", "", [])


async def test_owner_is_told_what_to_expect(milan: World) -> None:
    """By the firmware of this machine, and for as long as the VM is on record."""
    ovmf = firmware.in_one_file("amd-sev-snp")
    assert ovmf
    settings = {"MANAGER_TEE_FIRMWARE": str(ovmf), "MANAGER_QEMU_SMP_COUNT": "2"}
    async with milan.serve(**settings) as supervisor:
        vm_id = (await run(supervisor.http, tee="sev-snp"))["id"]
        path = f"/vms/{vm_id}/attestation-policy"
        told = (await supervisor.http.get(path)).json()
        values = {rule["field"]: rule["expected"] for rule in told["rules"]}
        assert values["HOST_DATA"] == hashlib.sha256(b"{}").hexdigest()
        arguments = ["--mode", "snp", "--vcpus", "2", "--vcpu-type", "EPYC-v4", "--ovmf", str(ovmf)]
        program = Path(sys.prefix, "bin", "sev-snp-measure")
        done = await trio.run_process([str(program), *arguments], capture_stdout=True)
        assert values["MEASUREMENT"] == done.stdout.decode().strip()
        assert f"--measurement {values['MEASUREMENT']} --computation" in told["command"]
        await supervisor.http.post(f"/vms/{vm_id}/shutdown")
        assert (await supervisor.http.get(path)).json() == told


async def test_owner_is_told_as_corim(milan: World, tmp_path: Path) -> None:
    ovmf = firmware.in_one_file("amd-sev-snp")
    key = ec.generate_private_key(ec.SECP384R1())
    pem = tmp_path / "key.pem"
    pem.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    settings = {"MANAGER_TEE_FIRMWARE": str(ovmf)}
    async with milan.serve(**settings) as supervisor:
        vm_id = (await run(supervisor.http, tee="sev-snp"))["id"]
        path = f"/vms/{vm_id}/attestation-policy"
        plain = await supervisor.http.get(path, headers={"Accept": corim.PLAIN})
        assert plain.headers["Content-Type"] == corim.PLAIN
        assert hashlib.sha256(b"{}").digest() in plain.content
        refused = await supervisor.http.get(path, headers={"Accept": corim.SIGNED})
        assert refused.status_code == 409
        assert "MANAGER_CORIM_SIGNING_KEY" in refused.json()["detail"]
    async with milan.serve(**settings, MANAGER_CORIM_SIGNING_KEY=str(pem)) as supervisor:
        signed = await supervisor.http.get(path, headers={"Accept": corim.SIGNED})
        assert signed.headers["Content-Type"] == corim.SIGNED
        assert verified(signed.content, key.public_key()) == plain.content


async def test_key_that_signs_nothing(world: World) -> None:
    with pytest.raises(HostError, match="no key to sign with"):
        at_start.examine(load(world.environ(MANAGER_CORIM_SIGNING_KEY="/dev/null")), world.clock)


async def test_nothing_is_to_be_expected_of_a_plain_vm(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await run(supervisor.http))["id"]
        answer = await supervisor.http.get(f"/vms/{vm_id}/attestation-policy")
        assert answer.status_code == 409
        assert "is a plain one" in answer.json()["detail"]


async def test_default_is_the_settings(milan: World) -> None:
    async with milan.serve(MANAGER_TEE="sev-es", MANAGER_TEE_POLICY="send") as supervisor:
        shown = await run(supervisor.http)
        assert (shown["tee"], made(shown)["policy"]) == ("sev-es", "0x7")
        assert shown["insecure"] == ["the host may send the guest to another machine"]
        assert made(await run(supervisor.http, tee_policy=""))["policy"] == "0xf"
        assert (await run(supervisor.http, tee="none"))["tee"] == "none"


async def test_auto_is_the_best(milan: World) -> None:
    async with milan.serve(MANAGER_TEE="auto") as supervisor:
        assert (await run(supervisor.http))["tee"] == "sev-snp"
        assert (await run(supervisor.http, tee="auto"))["tee"] == "sev-snp"


async def test_debug_is_there_for_who_asks_for_it_and_is_said(milan: World) -> None:
    async with milan.serve() as supervisor:
        shown = await run(supervisor.http, tee="sev-snp", tee_policy="debug")
        assert (made(shown)["policy"], shown["insecure"]) == ("0xb0000", [OPEN_TO_DEBUG])
        status = (await supervisor.http.get(f"/vms/{shown['id']}/status")).json()
        assert (status["tee"], status["insecure"]) == ("sev-snp", [OPEN_TO_DEBUG])


async def test_asked_for_and_shown_by_the_command(milan: World) -> None:
    async with milan.serve() as supervisor:
        command = cli(supervisor)
        words = ("--tee", "sev-snp", "--tee-policy", "debug")
        answer = await command.json("run", *words, "-", stdin=b"{}")
        assert answer["tee"] == "sev-snp"
        shown = (await command("show", answer["id"])).stdout.decode()
        assert "sev-snp (debug,smt," in shown
        assert OPEN_TO_DEBUG in shown
        plain = await command.json("run", "-", stdin=b"{}")
        assert b"insecure" not in (await command("show", plain["id"])).stdout


async def test_asked_for_and_shown_over_grpc(milan: World) -> None:
    async with milan.serve() as supervisor:
        metadata = [("tee", "sev-snp"), ("tee-policy", "no-smt,debug")]
        request = manager_pb2.RunRequest(computation=b"{}")
        call = partial(supervisor.manager.Run, request, metadata=metadata, timeout=PATIENCE_S)
        vm_id = (await in_thread(call)).ID
        shown = await supervisor.call(supervisor.vm_service.Get, vm_pb2.GetRequest(id=vm_id))
        assert (shown.tee, list(shown.insecure)) == ("sev-snp", [OPEN_TO_DEBUG])
        assert shown.tee_policy.startswith("debug,no-smt,")


@pytest.mark.parametrize(
    ("members", "member"),
    [
        ({"tee": "sgx"}, "tee"),
        ({"tee": "sev", "tee_policy": "no-smt"}, "tee_policy"),
        ({"tee": "sev-snp", "tee_policy": "0x30000"}, "tee_policy"),
        ({"tee": "sev-snp", "template": "require"}, "template"),
    ],
)
async def test_wrong_members(milan: World, members: dict[str, Any], member: str) -> None:
    async with milan.serve() as supervisor:
        answer = await post(supervisor.http, **members)
        assert (answer.status_code, answer.json()["member"]) == (400, member)


async def test_what_a_tee_forbids(milan: World) -> None:
    async with milan.serve() as supervisor:
        for tee, status in (("sev-es", 409), ("sev-snp", 409), ("sev", 200)):
            vm_id = (await run(supervisor.http, tee=tee))["id"]
            answer = await supervisor.http.post(f"/vms/{vm_id}/reset")
            assert answer.status_code == status, answer.text


async def test_neither_template_nor_pool_serves_a_bound_guest(milan: World) -> None:
    settings = {"MANAGER_POOL_SIZE": "1", "MANAGER_MAX_VMS": "9"}
    async with clonable(milan).serve(**settings) as supervisor:
        await ready(supervisor.http)
        waiting = await pool(supervisor.http, 1)
        for tee in ("sev", "sev-snp"):
            shown = await run(supervisor.http, tee=tee)
            assert (shown["id"] in waiting, shown["template"]) == (False, None)
        assert (await run(supervisor.http))["id"] in waiting


async def test_sev_guest_of_the_pool(milan: World) -> None:
    """It is bound to no computation, so it can wait for one. A policy of its own it cannot get."""
    settings = {"MANAGER_POOL_SIZE": "1", "MANAGER_MAX_VMS": "9", "MANAGER_TEE": "sev"}
    async with milan.serve(**settings) as supervisor:
        waiting = await pool(supervisor.http, 1)
        assert (await run(supervisor.http, tee_policy="debug"))["id"] not in waiting
        assert (await run(supervisor.http, tee="none"))["id"] not in waiting
        shown = await run(supervisor.http)
        assert (shown["id"] in waiting, made(shown)["policy"]) == (True, "0xb")


async def test_guest_is_what_it_was_after_a_restart_of_the_supervisor(milan: World) -> None:
    async with milan.serve() as supervisor:
        before = await run(supervisor.http, tee="sev-snp", tee_policy="debug")
        await supervisor.leave(await milan.guest())
    # Its record is damaged as well: the events know.
    (milan.tmp / before["id"] / "vm.json").write_text("")
    async with milan.serve() as supervisor:
        after = (await supervisor.http.get(f"/vms/{before['id']}")).json()
        for name in ("tee", "tee_policy", "insecure"):
            assert after[name] == before[name], name
        await supervisor.http.delete(f"/vms/{before['id']}")
    await milan.reap()


async def test_cause_of_a_failed_launch_is_told(milan: World) -> None:
    said = "qemu-system-x86_64: sev_snp_launch_start: SNP_LAUNCH_START ret=-22 fw_error=0 ''"
    milan.scenario(says=said, exits=1)
    async with milan.serve() as supervisor:
        answer = await post(supervisor.http, tee="sev-snp")
        assert answer.status_code == 500
        detail = answer.json()["detail"]
        for words in ("KVM refused the launch", "leave smt in the policy", said):
            assert words in detail
        (vm,) = supervisor.running.service.vms
        assert "KVM refused the launch" in (vm.record.error or "")
        # What it says of a plain VM is no riddle.
        plain = (await post(supervisor.http)).json()["detail"]
        assert "KVM refused" not in plain


async def test_missing_firmware_is_named(milan: World) -> None:
    async with milan.serve(MANAGER_TEE_FIRMWARE="/nowhere.fd") as supervisor:
        answer = await post(supervisor.http, tee="sev-snp")
        assert answer.status_code == 500
        assert "/nowhere.fd cannot be read" in answer.json()["detail"]


async def test_as_many_as_there_are_asids(milan: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is left for SEV-ES and SEV-SNP together, and two for SEV."""
    monkeypatch.setattr(reading, "numbers", lambda: {"sev": 2, "sev_es": 1})
    async with milan.serve(MANAGER_QUEUE="0", MANAGER_MAX_VMS="9") as supervisor:
        first = await run(supervisor.http, tee="sev-es")
        answer = await post(supervisor.http, tee="sev-snp")
        assert answer.status_code == 429
        assert "all ASIDs of SEV-ES and SEV-SNP are taken" in answer.json()["detail"]
        assert (await run(supervisor.http, tee="none"))["tee"] == "none"
        for _ in range(2):
            await run(supervisor.http, tee="sev")
        assert (await post(supervisor.http, tee="sev")).status_code == 429
        await supervisor.http.post(f"/vms/{first['id']}/shutdown")
        assert (await run(supervisor.http, tee="sev-snp"))["tee"] == "sev-snp"


async def test_a_run_without_an_asid_keeps_nobody_waiting(
    milan: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "numbers", lambda: {"sev_es": 1})
    async with milan.serve(MANAGER_MAX_VMS="9") as supervisor:
        await run(supervisor.http, tee="sev-es")
        answer = await post(supervisor.http, tee="sev-snp")
        assert (answer.status_code, "Retry-After" in answer.headers) == (429, True)
        assert supervisor.running.service.vms.admission.waiting == 0
        assert (await run(supervisor.http, tee="none"))["tee"] == "none"


async def test_party_is_not_told_what_the_host_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = Asking(monkeypatch)
    async with world.serve() as supervisor:
        with asking(ALICE):
            told = (await post(supervisor.http, tee="sev-snp")).json()["detail"]
        assert told.startswith("this host starts no SEV-SNP guest; ask its operator")
        assert "AMD" not in told


async def test_guest_of_an_earlier_version_stays_confidential(milan: World) -> None:
    """Its record does not say so; its command does. Its next boot must not be a plain one."""
    async with milan.serve() as supervisor:
        before = await run(supervisor.http, tee="sev")
        await supervisor.leave(await milan.guest())
    file = milan.tmp / before["id"] / "vm.json"
    record = json.loads(file.read_text())
    for member in ("tee", "tee_policy"):
        del record["vm"]["options"][member]
    file.write_text(json.dumps(record))
    async with milan.serve() as supervisor:
        after = (await supervisor.http.get(f"/vms/{before['id']}")).json()
        assert after["tee"] == "sev"
        assert after["tee_policy"] == "no-debug,no-key-sharing,no-send"
        await supervisor.http.delete(f"/vms/{before['id']}")
    await milan.reap()


async def test_host_that_gives_them_none(milan: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "numbers", lambda: {"sev": 0})
    async with milan.serve() as supervisor:
        answer = await post(supervisor.http, tee="sev")
        assert answer.status_code == 429
        assert "this host has no ASIDs of SEV" in answer.json()["detail"]
        assert "Retry-After" not in answer.headers


async def test_technology_that_has_gone_since_the_start(
    milan: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its module was loaded anew, without it."""
    async with milan.serve(MANAGER_TEE="sev-snp") as supervisor:
        gone = attrs.evolve(hosts.MILAN, parameters={"kvm_amd.sev": "Y", "kvm_amd.sev_snp": "N"})
        on(gone, milan, monkeypatch)
        answer = await post(supervisor.http)
        assert answer.status_code == 409
        assert "kvm_amd.sev_snp is N" in answer.json()["detail"]


# --- the platform's certificates ------------------------------------------------------------


async def test_owner_gets_the_platforms_certificates(world: World) -> None:
    said = {"pdh": "cGRo", "cert-chain": "Y2hhaW4=", "cpu0-id": "aWQ=", "cbitpos": 51,
            "reduced-phys-bits": 1}  # fmt: skip
    world.scenario(sev_platform=said)
    async with world.serve() as supervisor:
        answer = await supervisor.http.get("/host/sev")
        assert answer.json() == {name.replace("-", "_"): value for name, value in said.items()}


async def test_answer_that_is_not_qapis(world: World) -> None:
    world.scenario(sev_platform={"pdh": "cGRo"})
    async with world.serve() as supervisor:
        answer = await supervisor.http.get("/host/sev")
        assert answer.status_code == 409
        assert "does not answer as QAPI says" in answer.json()["detail"]


async def test_host_without_sev_says_qemus_reason(world: World) -> None:
    async with world.serve() as supervisor:
        answer = await supervisor.http.get("/host/sev")
        assert answer.status_code == 409
        assert "SEV is not enabled in KVM" in answer.json()["detail"]

"""The successor's calls: a VM whose agent asks another service for its computation."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import trio
import trio.testing

from supervisor.pb import manager_pb2
from supervisor.qemu import firmware
from supervisor.tee import corim
from tests.fake.test_tee import HOST_DATA, made, milan
from tests.support import secrets
from tests.support.tenants import ALICE, BOB, OPERATOR, Asking
from tests.support.world import PATIENCE_S

if TYPE_CHECKING:
    from tests.support.world import Supervisor, World

__all__ = ["milan"]

UNKNOWN = "00000000-0000-4000-8000-000000000000"
TOKEN, KEY, AWS = b"token-77fc10", b"PRIVATE KEY 51ab", b"aws/secret+903e="

REQUEST = manager_pb2.CreateReq(
    agent_log_level="debug",
    agent_cvm_server_ca_cert=b"CA",
    agent_cvm_client_key=KEY,
    agent_cvm_client_cert=b"CERT",
    agent_cvm_server_url="203.0.113.7:7010",
    agent_certs_token=TOKEN.decode(),
    aws_access_key_id="id",
    aws_secret_access_key=AWS.decode(),
)


@pytest.fixture
def world(world: World) -> World:
    """Its guests reach something."""
    world.settings["MANAGER_QEMU_GUEST_NETWORK"] = "open"
    return world


def request(**members: Any) -> manager_pb2.CreateReq:
    changed = manager_pb2.CreateReq()
    changed.CopyFrom(REQUEST)
    for name, value in members.items():
        setattr(changed, name, value)
    return changed


async def create(supervisor: Supervisor, **members: Any) -> manager_pb2.CreateRes:
    created: manager_pb2.CreateRes = await supervisor.call(
        supervisor.manager.CreateVm, request(**members)
    )
    return created


async def remove(supervisor: Supervisor, vm_id: str) -> None:
    await supervisor.call(supervisor.manager.RemoveVm, manager_pb2.RemoveReq(cvm_id=vm_id))


async def refusal(supervisor: Supervisor, method: str, message: object) -> tuple[Any, str]:
    with pytest.raises(grpc.RpcError) as raised:
        await supervisor.call(getattr(supervisor.manager, method), message)
    return raised.value.code(), str(raised.value.details())


async def test_guest_reads_what_its_agent_needs_and_nobody_else_can(world: World) -> None:
    async with world.serve() as supervisor:
        created = await create(supervisor)
        vm_id, guest = created.cvm_id, await world.guest()
        environment, certificates = (
            world.tmp / vm_id / one for one in ("environment", "certificates")
        )
        assert (environment / "environment").read_text().splitlines() == [
            "AGENT_LOG_LEVEL=debug",
            "AGENT_CVM_GRPC_URL=203.0.113.7:7010",
            f"AGENT_CERTS_TOKEN={TOKEN.decode()}",
            "AGENT_CVM_CA_URL=",
            "AWS_ACCESS_KEY_ID=id",
            f"AWS_SECRET_ACCESS_KEY={AWS.decode()}",
            "AGENT_CVM_GRPC_CLIENT_CERT=/etc/certs/cert.pem",
            f"AGENT_CVM_GRPC_CLIENT_CERT_SHA256={hashlib.sha256(b'CERT').hexdigest()}",
            "AGENT_CVM_GRPC_CLIENT_KEY=/etc/certs/key.pem",
            f"AGENT_CVM_GRPC_CLIENT_KEY_SHA256={hashlib.sha256(KEY).hexdigest()}",
            "AGENT_CVM_GRPC_SERVER_CA_CERTS=/etc/certs/ca.pem",
            f"AGENT_CVM_GRPC_SERVER_CA_CERTS_SHA256={hashlib.sha256(b'CA').hexdigest()}",
            f"AGENT_CVM_ID={vm_id}",
        ]
        found = {file.name: file.read_bytes() for file in certificates.iterdir()}
        assert found == {"cert.pem": b"CERT", "key.pem": KEY, "ca.pem": b"CA"}
        for directory in (environment, certificates):
            assert directory.stat().st_mode & 0o777 == 0o700
            assert {file.stat().st_mode & 0o777 for file in directory.iterdir()} == {0o600}

        shown = (await supervisor.http.get(f"/vms/{vm_id}")).json()
        assert (shown["purpose"], shown["state"]) == ("cvm", "running")
        assert shown["relay"]["state"] == "idle"
        line = " ".join(shown["argv"])
        for tag, directory in (("env_share", environment), ("certs_share", certificates)):
            assert f"path={directory},security_model=none,readonly=on" in line
            assert f"mount_tag={tag}" in line
        ports = {one["guest_port"]: str(one["host_port"]) for one in shown["forwards"]}
        assert created.forwarded_port == ports[7002]

        await remove(supervisor, vm_id)
        await guest.until("system_powerdown")
        assert guest.count("Run") == 0
        assert not (world.tmp / vm_id).exists()
        assert (await supervisor.http.get(f"/vms/{vm_id}")).status_code == 404


async def test_secrets_of_a_guest_are_told_to_nobody(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id, guest = (await create(supervisor)).cvm_id, await world.guest()
        paths = [f"/vms/{vm_id}", f"/vms/{vm_id}/status", "/vms", "/metrics"]
        paths.append("/events?after=0&limit=100")
        answers = [(path, (await supervisor.http.get(path)).content) for path in paths]
        assert not secrets.found(answers, TOKEN, KEY, AWS)
        assert not secrets.found(secrets.process(guest.pid), TOKEN, KEY, AWS)
        places = {
            Path(name).parent.name
            for name in secrets.found(secrets.files(world.tmp), TOKEN, KEY, AWS)
        }
        assert places <= {"environment", "certificates"}
        await supervisor.http.post(f"/vms/{vm_id}/shutdown", json={"mode": "force"})
        assert not secrets.found(secrets.files(world.tmp), TOKEN, KEY, AWS)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"agent_cvm_server_url": ""}, "agent_cvm_server_url is missing"),
        ({"agent_cvm_server_url": "h:1\nAGENT_CVM_ID=x"}, "agent_cvm_server_url has"),
        ({"agent_log_level": "debug\\"}, "agent_log_level has"),
        ({"agent_certs_token": "a b"}, "agent_certs_token has"),
        ({"agent_cvm_ca_url": "'"}, "agent_cvm_ca_url has"),
        ({"aws_region": "eu\0"}, "aws_region has"),
        ({"aws_endpoint_url": "ü"}, "aws_endpoint_url has"),
        ({"aws_secret_access_key": "x" * 4097}, "aws_secret_access_key has"),
        ({"agent_cvm_client_key": b""}, "go together"),
        ({"agent_cvm_server_ca_cert": bytes(65537)}, "is over 65536 bytes"),
        ({"ttl": "soon"}, "ttl must be a duration"),
        ({"ttl": "1ns" * 100_000}, "ttl must be a duration"),
        ({"aa_kbs_params": "cc_kbc::http://h:1"}, "MANAGER_TEE_KERNEL"),
    ],
)
async def test_member_that_is_refused(world: World, members: dict[str, Any], words: str) -> None:
    async with world.serve() as supervisor:
        code, said = await refusal(supervisor, "CreateVm", request(**members))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert words in said
        assert not len(supervisor.running.service.vms)


async def test_agent_that_could_ask_nobody(world: World) -> None:
    async with world.serve(MANAGER_QEMU_GUEST_NETWORK="none") as supervisor:
        code, said = await refusal(supervisor, "CreateVm", REQUEST)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "203.0.113.7:7010" in said
        assert "MANAGER_QEMU_GUEST_NETWORK=internet" in said


async def test_guest_that_does_not_run(world: World) -> None:
    world.scenario(says="no such machine", exits=1)
    async with world.serve() as supervisor:
        code, said = await refusal(supervisor, "CreateVm", REQUEST)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "no such machine" in said
        assert not secrets.found(secrets.files(world.tmp), TOKEN, KEY, AWS)


async def test_caller_who_leaves_before_there_is_an_id(world: World) -> None:
    world.scenario(swallows=("cont",))
    async with world.serve() as supervisor:
        call = supervisor.manager.CreateVm.future(REQUEST, timeout=PATIENCE_S)
        guest = await world.guest()
        await guest.until("cont")
        call.cancel()
        (vm,) = supervisor.running.service.vms
        await vm.wait_over()
        assert vm.record.end_cause == "caller-left"


async def test_what_nobody_knows_in_a_message_is_bounded(world: World) -> None:
    """It would stay in memory for as long as the call."""
    grown = manager_pb2.RemoveReq(cvm_id=UNKNOWN).SerializeToString()
    grown += b"\xfa\x01\x80\x80\x40" + bytes(1024 * 1024)  # field 31, of a mebibyte
    async with world.serve() as supervisor:
        call: Any = supervisor.channel.unary_unary("/manager.ManagerService/RemoveVm")
        with pytest.raises(grpc.RpcError) as raised:
            await supervisor.call(call, grown)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "the limit is 524288" in str(raised.value.details())


async def test_remover_who_leaves_has_it_removed(world: World) -> None:
    world.scenario(deaf_to_powerdown=1)
    async with world.serve(MANAGER_POWERDOWN_INTERVAL="1s") as supervisor:
        vm_id, guest = (await create(supervisor)).cvm_id, await world.guest()
        message = manager_pb2.RemoveReq(cvm_id=vm_id)
        call = supervisor.manager.RemoveVm.future(message, timeout=PATIENCE_S)
        await guest.until("system_powerdown")
        call.cancel()
        while (world.tmp / vm_id).exists():
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert guest.count("quit") == 0


async def test_audit_names_the_vm(world: World) -> None:
    world.scenario(says="no such machine", exits=1)
    async with world.serve() as supervisor:
        await refusal(supervisor, "CreateVm", REQUEST)
        vm_id = supervisor.only_vm().id
        await refusal(supervisor, "RemoveVm", manager_pb2.RemoveReq(cvm_id=UNKNOWN))
    lines = map(json.loads, (world.tmp / "audit.jsonl").read_text().splitlines())
    assert [(one["what"].rpartition("/")[2], one["vm"]) for one in lines] == [
        ("CreateVm", vm_id),
        ("RemoveVm", UNKNOWN),
    ]


async def test_time_to_live_is_the_requests(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await create(supervisor, ttl="1h30m0s")).cvm_id
        assert supervisor.vm(vm_id).record.options.ttl_s == 5400
        brief = (await create(supervisor, ttl="10ms")).cvm_id
        await supervisor.vm(brief).wait_over()
        assert supervisor.vm(brief).record.end_cause == "ttl"


async def test_guest_goes_on_after_a_restart_of_the_supervisor(world: World) -> None:
    async with world.serve() as supervisor:
        vm_id = (await create(supervisor)).cvm_id
        await supervisor.leave(await world.guest())
    # Its record is damaged as well: the events know.
    (world.tmp / vm_id / "vm.json").write_text("")
    async with world.serve() as supervisor:
        assert supervisor.vm(vm_id).record.purpose == "cvm"
        assert (world.tmp / vm_id / "environment" / "environment").exists()
        await remove(supervisor, vm_id)
        assert not (world.tmp / vm_id).exists()
    await world.reap()


async def test_a_vm_is_its_callers(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asking = Asking(monkeypatch)
    async with world.serve() as supervisor:
        with asking(ALICE):
            vm_id = (await create(supervisor)).cvm_id
        assert supervisor.vm(vm_id).record.owner == "alice"
        for method, made_of, member in (
            ("RemoveVm", manager_pb2.RemoveReq, "cvm_id"),
            ("CVMInfo", manager_pb2.CVMInfoReq, "id"),
            ("AttestationPolicy", manager_pb2.AttestationPolicyReq, "id"),
        ):
            with asking(BOB):
                found = await refusal(supervisor, method, made_of(**{member: vm_id}))
                unknown = await refusal(supervisor, method, made_of(**{member: UNKNOWN}))
            assert found[0] is grpc.StatusCode.NOT_FOUND
            assert found[1].replace(vm_id, "") == unknown[1].replace(UNKNOWN, "")
        assert not supervisor.vm(vm_id).ended
        with asking(OPERATOR):
            await remove(supervisor, vm_id)


async def test_info_is_of_that_vm(milan: World) -> None:
    settings = {
        "MANAGER_QEMU_SMP_COUNT": "3",
        "MANAGER_QEMU_CPU": "EPYC-v4,+sse4a",
        "MANAGER_QEMU_OVMF_VERSION": "2025.02",
        "MANAGER_EOS_VERSION": "v0.4",
    }
    async with milan.serve(**settings) as supervisor:
        vm_id = (await create(supervisor)).cvm_id
        info = await supervisor.call(supervisor.manager.CVMInfo, manager_pb2.CVMInfoReq(id=vm_id))
        assert info == manager_pb2.CVMInfoRes(
            id=vm_id,
            ovmf_version="2025.02",
            cpu_num=3,
            cpu_type="EPYC-v4,+sse4a",
            eos_version="v0.4",
        )
        wanted = manager_pb2.AttestationPolicyReq(id=vm_id)
        code, said = await refusal(supervisor, "AttestationPolicy", wanted)
        assert (code, "is a plain one" in said) == (grpc.StatusCode.FAILED_PRECONDITION, True)


async def test_confidential_guest_is_bound_to_its_environment(milan: World) -> None:
    """What the owner is told is the same over both wires, in the same form."""
    ovmf = str(firmware.in_one_file("amd-sev-snp"))
    async with milan.serve(MANAGER_TEE="sev-snp", MANAGER_TEE_FIRMWARE=ovmf) as supervisor:
        vm_id = (await create(supervisor)).cvm_id
        shown = (await supervisor.http.get(f"/vms/{vm_id}")).json()
        content = (milan.tmp / vm_id / "environment" / "environment").read_bytes()
        expected = hashlib.sha256(content).digest()
        assert made(shown)["host-data"] == base64.b64encode(expected).decode() != HOST_DATA

        path = f"/vms/{vm_id}/attestation-policy"
        told = await supervisor.http.get(path)
        (rule,) = [one for one in told.json()["rules"] if one["field"] == "HOST_DATA"]
        assert (rule["expected"], rule["why"]) == (
            expected.hex(),
            "SHA-256 of the guest's file environment",
        )
        encoded = await supervisor.http.get(path, headers={"Accept": corim.PLAIN})
        wanted = manager_pb2.AttestationPolicyReq(id=vm_id)
        answer = await supervisor.call(supervisor.manager.AttestationPolicy, wanted)
        assert (answer.id, answer.info) == (vm_id, encoded.content)
        assert expected in answer.info


async def test_word_for_a_kernel_that_is_measured(milan: World) -> None:
    kernel = milan.directory / "kernel"
    kernel.write_bytes(bytes(4096))
    settings = {
        "MANAGER_TEE": "sev-snp",
        "MANAGER_QEMU_DISK_IMG_KERNEL_FILE": str(kernel),
        "MANAGER_QEMU_KERNEL_CMDLINE": "quiet console=null",
    }
    async with milan.serve(**settings) as supervisor:
        for word in ("a b", "a'b", "a\nb", "ü", "hostfwd=tcp::1-:1,"):
            code, said = await refusal(supervisor, "CreateVm", request(aa_kbs_params=word))
            assert (code, "must be one word" in said) == (grpc.StatusCode.INVALID_ARGUMENT, True)
        vm_id = (await create(supervisor, aa_kbs_params="cc_kbc::http://h:8080")).cvm_id
        shown = (await supervisor.http.get(f"/vms/{vm_id}")).json()
        cmdline = "quiet console=null agent.aa_kbc_params=cc_kbc::http://h:8080"
        assert shown["argv"][shown["argv"].index("-append") + 1] == cmdline
        info = await supervisor.call(supervisor.manager.CVMInfo, manager_pb2.CVMInfoReq(id=vm_id))
        assert info.kernel_cmd == cmdline


async def test_kernel_of_a_plain_vm_and_no_disk(world: World) -> None:
    kernel, initrd = world.directory / "kernel", world.directory / "initrd"
    kernel.write_bytes(b"k")
    world.image.unlink()
    settings = {
        "MANAGER_TEE_KERNEL": str(kernel),
        "MANAGER_TEE_INITRD": str(initrd),
        "MANAGER_TEE_CMDLINE": "quiet",
    }
    async with world.serve(**settings) as supervisor:
        code, said = await refusal(supervisor, "CreateVm", REQUEST)
        assert (code, f"{initrd} cannot be read" in said) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            True,
        )
        initrd.write_bytes(b"i")
        vm_id = (await create(supervisor, aa_kbs_params="a::b")).cvm_id
        words = (await supervisor.http.get(f"/vms/{vm_id}")).json()["argv"]
        at = words.index("-kernel")
        assert words[at : at + 6] == [
            *("-kernel", str(kernel), "-initrd", str(initrd)),
            *("-append", "quiet agent.aa_kbc_params=a::b"),
        ]
        assert not [word for word in words if "scsi" in word]
        assert not (world.tmp / vm_id / "overlay.qcow2").exists()
        # A run boots from the disk, as ever.
        assert "base.qcow2 is missing" in (await supervisor.post(b"{}")).json()["detail"]


async def test_vm_of_the_pool_is_not_taken(world: World) -> None:
    async with world.serve(MANAGER_POOL_SIZE="1") as supervisor:
        waiting = await world.guest()
        while waiting.count("cont") == 0:
            await waiting.next()
        assert (await create(supervisor)).cvm_id != waiting.vm_id


async def test_shut_down_with_its_supervisor_it_is_asked(world: World) -> None:
    async with world.serve() as supervisor:
        await create(supervisor)
        guest = await world.guest()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.running.service.vms.end_all)
            await guest.until("system_powerdown")


async def test_variables_of_the_successor_without_an_effect_are_named(world: World) -> None:
    given = {"MANAGER_QEMU_HOST_DATA": "x", "MANAGER_QEMU_GPU_BDF": ""}
    async with world.serve_apart(**given) as supervisor:
        (said,) = [
            line for line in supervisor.log if line["message"] == "setting without an effect"
        ]
        assert said["name"] == "MANAGER_QEMU_HOST_DATA"
        assert "attestation-policy" in said["instead"]

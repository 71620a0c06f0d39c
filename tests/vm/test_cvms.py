"""A real guest reads what CreateVm gave it, over 9p; its agent is a program of the test's."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from supervisor.image import image
from supervisor.pb import manager_pb2, manager_pb2_grpc
from tests.vm.conftest import PATIENCE_S, started
from tests.vm.test_users import FIRST, LAST

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Tells on the console what it sees, and what it cannot do.
_AGENT = """#!/bin/sh
exec >/dev/console 2>&1
echo "agent: $AGENT_CVM_ID asks $AGENT_CVM_GRPC_URL as $(cat $AGENT_CVM_GRPC_CLIENT_CERT)"
echo "agent: level [$AGENT_LOG_LEVEL] region [$AWS_REGION] of $(ls /etc/certs | tr '\\n' ' ')"
for file in /etc/certs/cert.pem /etc/certs/new /etc/cocos/environment; do
    (echo x >"$file") 2>/dev/null && echo "agent: wrote $file"
done
echo "agent: booted $(cat /proc/cmdline)"
echo "agent: done"
exec sleep 1000000
"""


@pytest.fixture(scope="module")
def telling_image() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="qs-telling-", dir="/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)  # for another user's QEMU
        agent = directory / "agent"
        agent.write_text(_AGENT)
        image.build(directory / "image", agent=agent)
        yield directory / "image" / image.DISK


def test_kernel_that_is_booted_directly_has_the_word_for_it(telling_image: Path) -> None:
    """As the successor's guests are: everything is in the initramfs, and there is no disk."""
    files = telling_image.parent
    settings: dict[str, Any] = {
        "MANAGER_TEE_KERNEL": str(files / image.KERNEL),
        "MANAGER_TEE_INITRD": str(files / image.INITRAMFS),
        "MANAGER_TEE_CMDLINE": image.COMMAND_LINE,
        "MANAGER_QEMU_DISK_IMG_FILE": str(files / "missing"),
        "MANAGER_QEMU_GUEST_NETWORK": "open",
    }
    request = manager_pb2.CreateReq(agent_cvm_server_url="h:1", aa_kbs_params="cc_kbc::http://h:2")
    with (
        started(**settings) as supervisor,
        grpc.insecure_channel(f"127.0.0.1:{supervisor.grpc_port}") as channel,
    ):
        manager = manager_pb2_grpc.ManagerServiceStub(channel)
        vm_id = manager.CreateVm(request, timeout=PATIENCE_S).cvm_id
        console = supervisor.tmp / vm_id / "serial.log"
        supervisor.until(f"/vms/{vm_id}", lambda _: "agent: done" in console.read_text())
        booted = f"agent: booted {image.COMMAND_LINE} agent.aa_kbc_params=cc_kbc::http://h:2"
        assert booted in console.read_text()  # the firmware adds the name of the initramfs
        manager.RemoveVm(manager_pb2.RemoveReq(cvm_id=vm_id), timeout=PATIENCE_S)


@pytest.mark.parametrize("own_user", [False, True], ids=["", "another user's QEMU"])
def test_agent_finds_its_environment_and_its_certificates(
    telling_image: Path, own_user: bool
) -> None:
    settings: dict[str, Any] = {
        "MANAGER_QEMU_DISK_IMG_FILE": str(telling_image),
        "MANAGER_QEMU_GUEST_NETWORK": "open",
    }
    if own_user:
        if os.geteuid() != 0:
            pytest.skip("only root can start QEMU as another")
        settings["MANAGER_QEMU_RUN_AS"] = f"{FIRST}-{LAST}"
    with (
        started(**settings) as supervisor,
        grpc.insecure_channel(f"127.0.0.1:{supervisor.grpc_port}") as channel,
    ):
        manager = manager_pb2_grpc.ManagerServiceStub(channel)
        vm_id = manager.CreateVm(
            manager_pb2.CreateReq(
                agent_cvm_server_url="203.0.113.7:7010",
                agent_cvm_client_cert=b"the certificate",
                agent_cvm_client_key=b"the key",
                aws_region="eu-1",
            ),
            timeout=PATIENCE_S,
        ).cvm_id
        console = supervisor.tmp / vm_id / "serial.log"
        # The guest's last word of its start. Its agent's are before that: it has slept since.
        supervisor.until(f"/vms/{vm_id}", lambda _: "agent: done" in console.read_text())
        lines = console.read_text().splitlines()
        said = [line for line in lines if line.startswith("agent: ") and "booted" not in line]
        assert said == [
            f"agent: {vm_id} asks 203.0.113.7:7010 as the certificate",
            "agent: level [] region [eu-1] of cert.pem key.pem ",
            "agent: done",
        ]
        assert supervisor.show(vm_id)["state"] == "running"
        manager.RemoveVm(manager_pb2.RemoveReq(cvm_id=vm_id), timeout=PATIENCE_S)
        assert not (supervisor.tmp / vm_id).exists()

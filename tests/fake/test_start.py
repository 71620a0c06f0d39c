"""What keeps a supervisor from starting, told so that it can be mended."""

from __future__ import annotations

import os
import signal
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from supervisor.errors import HostError
from tests.support.world import refusal, taken

if TYPE_CHECKING:
    from tests.support.world import World

#: EFI_SYSTEM_NV_DATA_FV_GUID, in the header of a file that holds variables.
_NVRAM = uuid.UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")


@pytest.mark.parametrize("name", ["HTTP", "GRPC"])
async def test_port_of_an_api_that_belongs_to_somebody(world: World, name: str) -> None:
    port = world.ports[0]
    with taken(port):
        error = await refusal(world.serve(**{f"MANAGER_{name}_PORT": str(port)}))
    assert isinstance(error, HostError)
    assert f"127.0.0.1:{port}" in str(error)
    assert f"(pid {os.getpid()})" in str(error)
    assert f"MANAGER_{name}_PORT" in str(error)


@pytest.mark.parametrize("name", ["HTTP", "GRPC"])
async def test_without_its_ports_a_supervisor_looks_at_nothing_else(
    world: World, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Else the log would first blame a template, for want of something that nobody asked for."""
    port = world.ports[0]
    with taken(port):
        await refusal(world.serve(**{f"MANAGER_{name}_PORT": str(port)}))
    assert "template" not in capsys.readouterr().out
    async with world.serve() as supervisor:
        assert (await supervisor.http.get("/health")).status_code == 200


@pytest.mark.parametrize("network", ["none", "open"])
async def test_open_network_of_guests_is_warned_of(
    world: World, capsys: pytest.CaptureFixture[str], network: str
) -> None:
    async with world.serve(MANAGER_QEMU_GUEST_NETWORK=network):
        pass
    warned = "MANAGER_QEMU_GUEST_NETWORK=open: every guest reaches" in capsys.readouterr().out
    assert warned == (network == "open")


@pytest.mark.parametrize("auth", ["on", "off"])
async def test_supervisor_that_asks_nobody_warns(
    world: World, capsys: pytest.CaptureFixture[str], auth: str
) -> None:
    async with world.serve(MANAGER_AUTH=auth):
        pass
    assert ("MANAGER_AUTH=off: every user" in capsys.readouterr().out) == (auth == "off")


async def test_signal_to_read_files_again(world: World) -> None:
    async with world.serve_apart() as apart:
        for number in (signal.SIGHUP, signal.SIGINT):
            apart.process.send_signal(number)
        assert await apart.process.wait() == 0
    assert apart.said("files read again")


async def test_no_qemu(world: World) -> None:
    error = await refusal(world.serve(MANAGER_QEMU_BIN_PATH="no-such-qemu"))
    assert isinstance(error, HostError)
    assert "no-such-qemu" in str(error)
    assert "MANAGER_QEMU_BIN_PATH" in str(error)


async def test_kvm_that_is_insisted_on(world: World) -> None:
    """The stand-in cannot run a probe, so no host it is on has KVM."""
    error = await refusal(world.serve(MANAGER_QEMU_ENABLE_KVM="true"))
    assert isinstance(error, HostError)
    assert str(error).startswith("MANAGER_QEMU_ENABLE_KVM=true, but ")


@pytest.mark.parametrize("kind", ["SEV", "SEV_SNP", "TDX"])
async def test_tee_that_is_insisted_on(world: World, kind: str) -> None:
    switch = f"MANAGER_QEMU_ENABLE_{kind}"
    error = await refusal(world.serve(**{switch: "true"}))
    assert str(error).startswith(f"{switch}=true, but ")
    assert isinstance(error, HostError)
    assert error.advice.endswith(f"set {switch} to false to start plain VMs")


async def test_kvm_and_sev_are_done_without_where_they_are_not_there(world: World) -> None:
    settings = {"MANAGER_QEMU_ENABLE_KVM": "auto", "MANAGER_QEMU_ENABLE_SEV": "auto"}
    async with world.serve(**settings) as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        assert "-enable-kvm" not in vm.record.command


async def test_tmp_that_is_a_file(world: World) -> None:
    error = await refusal(world.serve(MANAGER_QEMU_TMP_FILE_LOC=str(world.image)))
    assert isinstance(error, HostError)
    assert "MANAGER_QEMU_TMP_FILE_LOC" in str(error)


async def test_tmp_that_is_too_long(world: World) -> None:
    error = await refusal(world.serve(MANAGER_QEMU_TMP_FILE_LOC=f"/tmp/{'x' * 80}"))
    assert "107 bytes" in str(error)


async def test_firmware_that_is_swapped(world: World) -> None:
    """Known before a guest has to wait for it in vain."""
    variables = world.directory / "swapped.fd"
    variables.write_bytes(bytes(16) + _NVRAM.bytes_le + (44).to_bytes(8, "little") + b"_FVH")
    error = await refusal(world.serve(MANAGER_QEMU_OVMF_CODE_FILE=str(variables)))
    assert isinstance(error, HostError)
    assert f"{variables} holds variables, not code" in str(error)


async def test_tmp_behind_a_link(world: World) -> None:
    link = world.directory / "link"
    link.symlink_to(world.tmp)
    async with world.serve(MANAGER_QEMU_TMP_FILE_LOC=str(link)) as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        assert vm.dir.path == world.tmp / vm.id


async def test_relative_tmp(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.directory)
    async with world.serve(MANAGER_QEMU_TMP_FILE_LOC="t") as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        assert vm.dir.path == world.directory / "t" / vm.id


@pytest.mark.parametrize("name", ["HTTP", "GRPC"])
@pytest.mark.parametrize("part", ["SERVER_CERT", "SERVER_KEY", "CLIENT_CA_CERTS"])
async def test_certificate_that_cannot_be_read(world: World, name: str, part: str) -> None:
    names = [f"MANAGER_{name}_{each}" for each in ("SERVER_CERT", "SERVER_KEY", "CLIENT_CA_CERTS")]
    readable = dict.fromkeys(names, str(Path(__file__)))
    error = await refusal(world.serve(**readable | {f"MANAGER_{name}_{part}": "/no/such.pem"}))
    assert isinstance(error, HostError)
    assert "/no/such.pem" in str(error)


@pytest.mark.parametrize("name", ["HTTP", "GRPC"])
async def test_certificate_that_is_none(world: World, name: str) -> None:
    """Text in the place of PEM is a fault of the host's set-up, not a crash."""
    settings = {
        f"MANAGER_{name}_SERVER_CERT": str(Path(__file__)),
        f"MANAGER_{name}_SERVER_KEY": str(Path(__file__)),
    }
    error = await refusal(world.serve(**settings))
    assert isinstance(error, HostError)


async def test_agents_certificate_that_cannot_be_read(world: World) -> None:
    settings = {
        "MANAGER_AGENT_GRPC_CLIENT_TLS": "true",
        "MANAGER_AGENT_GRPC_CA_CERTS": "/no/such.pem",
    }
    error = await refusal(world.serve(**settings))
    assert isinstance(error, HostError)
    assert "/no/such.pem" in str(error)

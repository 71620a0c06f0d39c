"""A VM's credential: who gets it, where it is, and that the supervisor shows it."""

from __future__ import annotations

import base64
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from supervisor.api.auth import tokens
from supervisor.caller import Role
from supervisor.pb import agent_pb2, manager_pb2, vm_pb2
from supervisor.pb.agent_pb2_grpc import AgentServiceStub
from supervisor.state.secret import Secret
from tests.fake.test_control import events_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from supervisor.vm.vm import Vm
    from tests.support.world import Supervisor, World

if TYPE_CHECKING:
    Metadata = tuple[tuple[str, str], ...]

ON = {"MANAGER_AUTH": "on"}
#: Asked all the time.
BEAT = {"MANAGER_HEARTBEAT": "20ms"}


def secret_of(world: World, vm_id: str) -> Secret:
    secret = Secret.read(world.tmp / vm_id / "secret")
    assert secret
    return secret


async def algo(supervisor: Supervisor, vm: Vm, credential: str | None) -> str:
    """What comes of a call to the agent's port: a code, or OK."""
    metadata = [("authorization", f"Bearer {credential}")] if credential else []
    (port,) = (one.host_port for one in vm.record.forwards if one.guest_port == 7002)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            request = agent_pb2.AlgoRequest(algorithm=b"pass")
            await supervisor.call(
                lambda message, timeout: AgentServiceStub(channel).Algo(
                    message, timeout=timeout, metadata=metadata
                ),
                request,
            )
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


@asynccontextmanager
async def asking(world: World, **settings: str) -> AsyncIterator[tuple[Supervisor, Metadata]]:
    """A supervisor that asks who calls; its HTTP client shows a token, the metadata has it too."""
    world.tmp.mkdir(mode=0o700, exist_ok=True)
    _, token = tokens.create(world.tmp / "tokens.json", "us", Role.ADMIN, None, tokens.now())
    async with world.serve(**ON, **settings) as supervisor:
        supervisor.http.headers["Authorization"] = f"Bearer {token}"
        yield supervisor, (("authorization", f"Bearer {token}"),)


async def known_to_be(vm: Vm, *, protected: bool) -> None:
    await vm.until(lambda: vm.agent_protected is protected)


async def test_agent_is_its_runs_alone(world: World) -> None:
    world.scenario(agent="reference")
    async with asking(world, **BEAT) as (supervisor, us):
        answer = await supervisor.run()
        vm = supervisor.vm(answer["id"])
        assert answer["credential"] == secret_of(world, vm.id).credential
        for credential in (None, "wrong", secret_of(world, vm.id).credential_hash):
            assert await algo(supervisor, vm, credential) == "UNAUTHENTICATED"
        assert await algo(supervisor, vm, answer["credential"]) == "OK"
        await known_to_be(vm, protected=True)
        shown = (await supervisor.http.get(f"/vms/{vm.id}")).json()
        assert shown["agent"]["protected"] is True
        by_grpc = await supervisor.call(
            partial(supervisor.vm_service.Get, metadata=us), vm_pb2.GetRequest(id=vm.id)
        )
        assert by_grpc.agent_protected is True


async def test_every_way_to_run_tells_the_credential(world: World) -> None:
    async with asking(world) as (supervisor, us):
        answer = await supervisor.post(b"{}", Prefer="respond-async", **{"Idempotency-Key": "k"})
        vm_id = answer.json()["id"]
        credential = secret_of(world, vm_id).credential
        assert answer.json()["credential"] == credential
        again = await supervisor.post(b"{}", **{"Idempotency-Key": "k"})
        assert (again.json()["id"], again.json()["credential"]) == (vm_id, credential)
        request = manager_pb2.RunRequest(computation=b"{}")
        response = await supervisor.call(partial(supervisor.manager.Run, metadata=us), request)
        assert response.credential == secret_of(world, response.ID).credential


async def test_without_auth_the_agent_is_open_once_a_run_has_it(world: World) -> None:
    world.scenario(agent="reference")
    async with world.serve(MANAGER_POOL_SIZE="1", **BEAT) as supervisor:
        await world.guest()
        vm = supervisor.only_vm()
        await vm.until(lambda: vm.agent_ready)
        await known_to_be(vm, protected=True)
        assert await algo(supervisor, vm, None) == "UNAUTHENTICATED"
        answer = await supervisor.run()
        assert (answer["id"], answer["credential"]) == (vm.id, None)
        assert await algo(supervisor, vm, None) == "OK"
        await known_to_be(vm, protected=False)


async def test_without_auth_the_agent_is_open_after_a_reset_as_well(world: World) -> None:
    world.scenario(agent="reference")
    async with world.serve(**BEAT) as supervisor:
        vm = supervisor.vm((await supervisor.run())["id"])
        await supervisor.http.post(f"/vms/{vm.id}/reset")
        await vm.until(lambda: vm.agent_ready)
        assert await algo(supervisor, vm, None) == "OK"
        await known_to_be(vm, protected=False)


async def test_agent_that_was_not_opened_is_opened_later(world: World) -> None:
    """As after a supervisor that was killed between its agent's start and its opening."""
    world.scenario(agent="reference")
    async with asking(world) as (supervisor, _):
        await supervisor.run()
        guest = await world.guest()
        await supervisor.leave(guest)
    async with world.serve(**BEAT) as supervisor:
        vm = supervisor.vm(guest.vm_id)
        await known_to_be(vm, protected=False)
        assert await algo(supervisor, vm, None) == "OK"


@pytest.mark.parametrize("kind", ["original", "recorder"])
async def test_agent_that_asks_nobody_is_shown_as_unprotected(world: World, kind: str) -> None:
    world.scenario(agent=kind)
    async with asking(world, **BEAT) as (supervisor, us):
        vm = supervisor.vm((await supervisor.run())["id"])
        assert vm.agent_protected in (None, False)
        await known_to_be(vm, protected=False)
        by_grpc = await supervisor.call(
            partial(supervisor.vm_service.Get, metadata=us), vm_pb2.GetRequest(id=vm.id)
        )
        assert by_grpc.HasField("agent_protected")
        assert by_grpc.agent_protected is False


async def test_credential_outlives_the_supervisor_and_not_the_vm(world: World) -> None:
    world.scenario(agent="reference")
    async with asking(world) as (supervisor, _):
        credential = (await supervisor.run())["credential"]
        guest = await world.guest()
        await supervisor.leave(guest)
    async with asking(world, **BEAT) as (supervisor, _):
        vm = supervisor.vm(guest.vm_id)
        await known_to_be(vm, protected=True)
        assert vm.credential == credential
        assert await algo(supervisor, vm, credential) == "OK"
        await supervisor.http.post(f"/vms/{vm.id}/shutdown?mode=force")
        assert vm.credential is None
        assert not (vm.dir.path / "secret").exists()


async def test_vm_that_is_booted_again_keeps_its_credential(world: World) -> None:
    world.scenario(agent="reference")
    settings = {"MANAGER_RESTART": "on-failure", "MANAGER_RESTART_BACKOFF": "10ms"}
    async with asking(world, **settings) as (supervisor, _):
        answer = await supervisor.run()
        guest, vm = await world.guest(), supervisor.vm(answer["id"])
        await guest.order("exit", status=1)
        await world.guest()
        await vm.until(lambda: vm.record.restarts == 1 and vm.record.settled and vm.agent_ready)
        assert vm.credential == answer["credential"]
        assert await algo(supervisor, vm, vm.credential) == "OK"


async def test_credential_is_nowhere_else(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    async with asking(world) as (supervisor, us):
        credential = (await supervisor.run())["credential"]
        vm_id = supervisor.only_vm().id
        pages: list[Any] = [
            (await supervisor.http.get(path)).text
            for path in (
                *("/vms", "/metrics", "/health"),
                *(f"/vms/{vm_id}", f"/vms/{vm_id}/status", "/events?after=0&limit=1000"),
            )
        ]
        get = partial(supervisor.vm_service.Get, metadata=us)
        everything = partial(supervisor.vm_service.List, metadata=us)
        pages += [await supervisor.call(get, vm_pb2.GetRequest(id=vm_id))]
        pages += [await supervisor.call(everything, vm_pb2.ListRequest())]
        pages += [events_of(world, vm_id), repr(vars(supervisor.only_vm()))]
        proc = Path(f"/proc/{supervisor.only_vm().pid}")
        pages += [(proc / name).read_bytes().decode() for name in ("cmdline", "environ")]
        shown = "".join(map(str, pages))
        needles = credential.encode(), base64.urlsafe_b64decode(f"{credential}=")
        files = [one for one in world.directory.rglob("*") if one.is_file()]
        holders = [
            one.name for one in files if any(needle in one.read_bytes() for needle in needles)
        ]
    out = capsys.readouterr()
    assert credential not in shown + out.out + out.err
    assert holders == ["secret"]

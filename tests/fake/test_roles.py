"""Every route and every method, for every role."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest

from supervisor import errors
from supervisor.api import callers
from supervisor.caller import Role
from supervisor.pb import manager_pb2, vm_pb2
from tests.support import pages
from tests.support.routes import application
from tests.support.tenants import Asking, first_of, party

if TYPE_CHECKING:
    from tests.support.world import Supervisor, World

M, R, P, O, A = Role.METRICS, Role.READ, Role.RUN, Role.OPERATE, Role.ADMIN  # noqa: E741
SEE, USE = {R, P, O, A}, {P, O, A}
ID = "00000000-0000-4000-8000-000000000000"

#: Who may, and the status if nothing but the right is in order.
#: test_console.py has what comes of them.
WEBSOCKETS: dict[str, tuple[set[Role], int]] = {"GET /vms/<vm_id>/console": (USE, 101)}
ROUTES: dict[str, tuple[set[Role], int]] = {
    "POST /run": (USE, 415),
    "GET /vms": (SEE, 200),
    "GET /vms/<vm_id>": (SEE, 404),
    "GET /vms/<vm_id>/status": (SEE, 404),
    "GET /vms/<vm_id>/attestation-policy": (SEE, 404),
    "POST /vms/<vm_id>/attestation": (USE, 404),
    "GET /vms/<vm_id>/launch-measurement": (USE, 404),
    "POST /vms/<vm_id>/launch-secret": (USE, 404),
    "POST /vms/<vm_id>/launch": (USE, 404),
    "GET /vms/<vm_id>/reply": (USE, 404),
    "GET /vms/<vm_id>/logs": (USE, 404),
    "PUT /vms/<vm_id>/algorithm": (USE, 404),
    "PUT /vms/<vm_id>/data/<number>": (USE, 404),
    "POST /vms/<vm_id>/compute": (USE, 404),
    "GET /vms/<vm_id>/outcome": (USE, 404),
    "GET /vms/<vm_id>/result": (USE, 404),
    "POST /vms/<vm_id>/shutdown": (USE, 404),
    "POST /vms/<vm_id>/pause": (USE, 404),
    "POST /vms/<vm_id>/resume": (USE, 404),
    "POST /vms/<vm_id>/reset": (USE, 404),
    "GET /vms/<vm_id>/computation": (SEE, 404),
    "POST /vms/<vm_id>/computation/stop": (USE, 404),
    "DELETE /vms/<vm_id>": (USE, 404),
    "GET /vms/<vm_id>/events": (SEE, 404),
    "GET /events": (SEE, 200),
    "GET /templates": ({O, A}, 200),
    "GET /hosts": ({R, O, A}, 409),
    "POST /host/drain": ({O, A}, 409),
    "POST /host/resume": ({O, A}, 409),
    "GET /host": ({R, O, A}, 200),
    "GET /host/checks": ({R, O, A}, 200),
    "GET /host/sev": (USE, 409),
    "GET /health": (set(Role), 200),
    "GET /ready": (set(Role), 200),
    "GET /openapi.yaml": (set(Role), 200),
    "GET /whoami": (set(Role), 200),
    "GET /": (set(Role), 200),
    "GET /page/<path:name>": (set(Role), 404),
    "GET /metrics": ({M, R, O, A}, 200),
}

METHODS: dict[str, tuple[set[Role], str]] = {
    "manager.ManagerService/Run": (USE, "INVALID_ARGUMENT"),
    "manager.ManagerService/CreateVm": (USE, "INVALID_ARGUMENT"),
    "manager.ManagerService/RemoveVm": (USE, "NOT_FOUND"),
    "manager.ManagerService/CVMInfo": (SEE, "NOT_FOUND"),
    "manager.ManagerService/AttestationPolicy": (SEE, "NOT_FOUND"),
    "supervisor.v1.VmService/List": (SEE, "OK"),
    "supervisor.v1.VmService/Get": (SEE, "NOT_FOUND"),
    "supervisor.v1.VmService/Shutdown": (USE, "NOT_FOUND"),
    "supervisor.v1.VmService/Delete": (USE, "NOT_FOUND"),
    "supervisor.v1.VmService/Pause": (USE, "NOT_FOUND"),
    "supervisor.v1.VmService/Resume": (USE, "NOT_FOUND"),
    "supervisor.v1.VmService/Reset": (USE, "NOT_FOUND"),
    "supervisor.v1.VmService/Computation": (SEE, "NOT_FOUND"),
    "supervisor.v1.VmService/StopComputation": (USE, "NOT_FOUND"),
    "supervisor.v1.VmService/Watch": (SEE, "NOT_FOUND"),
}

REQUESTS: dict[str, Any] = {
    "Run": manager_pb2.RunRequest(),
    "CreateVm": manager_pb2.CreateReq(),
    "RemoveVm": manager_pb2.RemoveReq(cvm_id=ID),
    "CVMInfo": manager_pb2.CVMInfoReq(id=ID),
    "AttestationPolicy": manager_pb2.AttestationPolicyReq(id=ID),
    "List": vm_pb2.ListRequest(),
    "Get": vm_pb2.GetRequest(id=ID),
    "Shutdown": vm_pb2.ShutdownRequest(id=ID),
    "Delete": vm_pb2.DeleteRequest(id=ID),
    "Pause": vm_pb2.PauseRequest(id=ID),
    "Resume": vm_pb2.ResumeRequest(id=ID),
    "Reset": vm_pb2.ResetRequest(id=ID),
    "Computation": vm_pb2.ComputationRequest(id=ID),
    "StopComputation": vm_pb2.StopComputationRequest(id=ID),
    "Watch": vm_pb2.WatchRequest(id=ID),
}

SERVICES = [
    service
    for module in (manager_pb2, vm_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
]


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> Asking:
    return Asking(monkeypatch)


def test_the_tables_have_every_route_and_every_method() -> None:
    routes = {
        f"{method} {rule.rule}"
        for rule in application().url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    methods = {
        f"{service.full_name}/{method.name}" for service in SERVICES for method in service.methods
    }
    assert set(ROUTES) | set(WEBSOCKETS) == routes
    assert set(METHODS) == methods


async def test_routes(world: World, asking: Asking) -> None:
    async with world.serve() as supervisor:
        for role in Role:
            with asking(party("carol", role)):
                for route, (roles, status) in ROUTES.items():
                    method, path = route.split()
                    params = {"limit": "1"} if path == "/events" else {}
                    path = path.replace("<vm_id>", ID)
                    answer = await supervisor.http.request(method, path, params=params)
                    wanted = status if role in roles else 403
                    assert answer.status_code == wanted, (role, route, answer.text)
                    if wanted == 403:
                        body = answer.json()
                        assert (body["title"], body["role"]) == ("Forbidden", role)
                        assert repr(body["right"]) in body["detail"]
                        assert all(one.value in body["advice"] for one in roles)


@pytest.mark.parametrize("path", ["/metrics", "/vms", f"/vms/{ID}/status", "/templates"])
async def test_other_methods_of_a_route_need_its_right_too(
    world: World, asking: Asking, path: str
) -> None:
    nobody = {"/metrics": P, "/vms": M, "/templates": R}.get(path, M)
    async with world.serve() as supervisor:
        with asking(party("carol", nobody)):
            for method in ("HEAD", "OPTIONS"):
                answer = await supervisor.http.request(method, path)
                assert answer.status_code == 403, (method, path)


async def code_of(supervisor: Supervisor, service: str, method: str) -> tuple[str, str]:
    """A call's status and words."""
    stub: Any = supervisor.manager if service.startswith("manager.") else supervisor.vm_service
    call = getattr(stub, method)
    try:
        await supervisor.call(first_of(call) if method == "Watch" else call, REQUESTS[method])
    except grpc.RpcError as error:
        failed = cast("grpc.Call", error)
        return failed.code().name, str(failed.details())
    return "OK", ""


async def test_methods(world: World, asking: Asking) -> None:
    async with world.serve() as supervisor:
        for role in Role:
            with asking(party("carol", role)):
                for name, (roles, status) in METHODS.items():
                    code, words = await code_of(supervisor, *name.split("/"))
                    assert code == (status if role in roles else "PERMISSION_DENIED"), (role, name)
                    assert role in roles or f"the role {role.value!r} lacks" in words


def test_a_handler_without_a_right_keeps_the_server_from_starting() -> None:
    with pytest.raises(errors.SupervisorError, match="declares no right"):
        callers.right_of(test_the_tables_have_every_route_and_every_method)


def test_nothing_is_served_in_the_name_of_nobody() -> None:
    with pytest.raises(errors.SupervisorError, match="without a caller"):
        callers.current()


def test_the_table_for_people_is_this_one() -> None:
    """docs/reference/roles.md has a row for each right, with the routes that need it."""
    page = pages.ROOT / "docs" / "reference" / "roles.md"
    shown: dict[str, set[Role]] = {}
    for row in pages.rows(page, "What each role may"):
        having = {
            role for role, cell in zip(Role, row[2:], strict=True) if cell in ("yes", "its own")
        }
        for route in row[1].split("`")[1::2]:
            shown[route] = having
    known: dict[str, set[Role]] = {
        route.replace("vm_id", "id"): roles for route, (roles, _) in (ROUTES | WEBSOCKETS).items()
    }
    known |= {name.rpartition("/")[2]: roles for name, (roles, _) in METHODS.items()}
    assert shown == known

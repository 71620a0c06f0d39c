"""A guest whose agent has a TLS key of its own, in real VMs."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from supervisor.image import image
from supervisor.pb import agent_pb2, agent_pb2_grpc
from tests.support.agent_process import open_channel
from tests.support.world import PATIENCE_S
from tests.vm.conftest import Supervisor, started
from tests.vm.test_run import computation

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    directory = tmp_path_factory.mktemp("tls") / "img"
    assert not image.build(directory, agent_arguments=["--tls"]).clone_safe
    with started(
        MANAGER_QEMU_DISK_IMG_FILE=str(directory / image.DISK),
        MANAGER_AGENT_GRPC_CLIENT_TLS="true",
        MANAGER_AGENT_GRPC_OWN_CERTS="true",
        MANAGER_HEARTBEAT="1s",
    ) as running:
        yield running


def test_owner_speaks_to_the_guest_over_tls(supervisor: Supervisor) -> None:
    run = supervisor.run(computation("tls"))
    ports = {one["guest_port"]: (one["host_address"], one["host_port"]) for one in run["forwards"]}
    certificate = ssl.get_server_certificate(ports[7002], timeout=PATIENCE_S)
    how: dict[str, Any] = {"timeout": PATIENCE_S}
    with open_channel(ports[7002], certificate) as channel:
        agent = agent_pb2_grpc.AgentServiceStub(channel)
        assert agent.Data(agent_pb2.DataRequest(dataset=b"1"), **how).datasetID
        with pytest.raises(grpc.RpcError) as plain:
            agent.Attestation(agent_pb2.AttestationRequest(report_data=b"1"), **how)
        assert plain.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    vm = supervisor.show(run["id"])
    assert vm["agent"]["ready"]
    assert vm["template"] is None

"""The successor's calls: what CreateVm asks for, and what CVMInfo answers. Pure.

Its messages are its own; what is done with them is what is done with every VM.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from supervisor.agent import channel
from supervisor.config import GuestNetwork, TemplateUse
from supervisor.config.settings import parse_seconds
from supervisor.errors import Busy, InvalidRequest
from supervisor.pb import manager_pb2
from supervisor.qemu.cmdline import values_in
from supervisor.state.record import RunOptions
from supervisor.state.shares import Shares, is_plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from supervisor.config import Config
    from supervisor.vm.vm import Vm

#: From the request's members to the names that an agent knows. The first are always there.
_ALWAYS = {
    "agent_log_level": "AGENT_LOG_LEVEL",
    "agent_cvm_server_url": "AGENT_CVM_GRPC_URL",
    "agent_certs_token": "AGENT_CERTS_TOKEN",
    "agent_cvm_ca_url": "AGENT_CVM_CA_URL",
}
_IF_GIVEN = {
    "aws_access_key_id": "AWS_ACCESS_KEY_ID",
    "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "aws_endpoint_url": "AWS_ENDPOINT_URL",
    "aws_region": "AWS_REGION",
}
#: Which file each certificate is, and the name of its path.
_FILES = {
    "agent_cvm_client_cert": ("cert.pem", "AGENT_CVM_GRPC_CLIENT_CERT"),
    "agent_cvm_client_key": ("key.pem", "AGENT_CVM_GRPC_CLIENT_KEY"),
    "agent_cvm_server_ca_cert": ("ca.pem", "AGENT_CVM_GRPC_SERVER_CA_CERTS"),
}
_IN_THE_GUEST = "/etc/certs"
_LONGEST_FILE = 64 * 1024

#: A word of a kernel's command line that can set nothing but itself.
_KERNEL_WORD = re.compile(r"[A-Za-z0-9._~:/?&=%+@-]{1,1024}")


def shares(message: manager_pb2.CreateReq) -> Shares:
    """What the guest is to read.

    :raises InvalidRequest: if a member is missing, too long, or could set another name
    """
    if not message.agent_cvm_server_url:
        raise InvalidRequest(
            "agent_cvm_server_url is missing",
            member="agent_cvm_server_url",
            advice="name the service that the agent asks, as host:port",
        )
    if bool(message.agent_cvm_client_cert) != bool(message.agent_cvm_client_key):
        raise InvalidRequest(
            "agent_cvm_client_cert and agent_cvm_client_key go together",
            member="agent_cvm_client_cert",
        )
    files = {one: name for one, (name, _) in _FILES.items() if getattr(message, one)}
    for one in files:
        if len(getattr(message, one)) > _LONGEST_FILE:
            raise InvalidRequest(f"{one} is over {_LONGEST_FILE} bytes", member=one)
    return Shares(
        environment=tuple(_environment(message)),
        certificates=tuple((name, getattr(message, one)) for one, name in files.items()),
    )


def _environment(message: manager_pb2.CreateReq) -> Iterator[tuple[str, str]]:
    for member, name in (_ALWAYS | _IF_GIVEN).items():
        value = getattr(message, member)
        if not is_plain(value):
            raise InvalidRequest(
                f"{member} has more than 4096 characters, a space, a line end, a quotation mark or"
                " another character that a file of variables gives a meaning to",
                member=member,
            )
        if value or member in _ALWAYS:
            yield name, value
    for member, (file, name) in _FILES.items():
        if content := getattr(message, member):
            yield name, f"{_IN_THE_GUEST}/{file}"
            # A report that is bound to the environment is bound to the certificates, too.
            yield f"{name}_SHA256", hashlib.sha256(content).hexdigest()


def options(message: manager_pb2.CreateReq, config: Config, request_id: str) -> RunOptions:
    """:raises InvalidRequest: if a member is wrong
    :raises Busy: if no guest of this supervisor reaches another service
    """
    if config.qemu.net.guest is GuestNetwork.NONE:
        raise Busy(
            "guests reach nothing here, and the agent of this VM would have to reach"
            f" {message.agent_cvm_server_url}",
            advice="the operator can set MANAGER_QEMU_GUEST_NETWORK=internet",
        )
    return RunOptions(
        ttl_s=_ttl(message.ttl) if message.ttl else config.life.ttl_s,
        keep_disk=config.retention.disks,
        template=TemplateUse.OFF,
        forwards=config.qemu.net.forwards,
        tee=config.qemu.default_tee,
        tee_policy=str(config.qemu.tee.policy),
        kernel_words=_kernel_words(message.aa_kbs_params, config),
        request_id=request_id,
    )


def _ttl(text: str) -> float:
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise InvalidRequest(f"ttl {error}", member="ttl") from None


def _kernel_words(given: str, config: Config) -> str:
    if not given:
        return ""
    if config.qemu.tee.kernel is None:
        raise InvalidRequest(
            "aa_kbs_params has no place here: the disk's boot loader starts the guest's kernel",
            member="aa_kbs_params",
            advice="the operator can set MANAGER_TEE_KERNEL",
        )
    if not _KERNEL_WORD.fullmatch(given):
        raise InvalidRequest(
            "aa_kbs_params must be one word of a kernel's command line, such as"
            " cc_kbc::http://host:8080",
            member="aa_kbs_params",
        )
    return f"agent.aa_kbc_params={given}"


def created(vm: Vm) -> manager_pb2.CreateRes:
    port = ""
    if vm.record.forwards:
        leading = channel.forward_to_agent(vm.config.agent, vm.record.forwards)
        port = str(leading.host_port)
    return manager_pb2.CreateRes(forwarded_port=port, cvm_id=vm.id)


def info(vm: Vm) -> manager_pb2.CVMInfoRes:
    """What the VM was launched with, and what the settings say of its firmware and its system."""
    command, config = vm.record.command, vm.config.qemu
    return manager_pb2.CVMInfoRes(
        id=vm.id,
        ovmf_version=config.firmware.version,
        cpu_num=vm.record.vcpus,
        cpu_type="".join(values_in(command, "-cpu")),
        kernel_cmd="".join(values_in(command, "-append")),
        eos_version=config.eos_version,
    )

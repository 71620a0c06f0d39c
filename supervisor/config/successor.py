"""Variables of the original's successor that change nothing here, and what does instead.

Whoever brings the successor's environment file is not refused for them; the supervisor names them
once at its start. Those that mean the same here are second names of our settings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_BOUND = "every report is bound to its run; see GET /vms/<id>/attestation-policy"
_CLIENTS = "it is a client's; of clients' authorities: MANAGER_GRPC_CLIENT_CA_CERTS"
_EACH_VM = "every VM has files of its own in MANAGER_QEMU_TMP_FILE_LOC"
_FIXED = "the names and places of these devices are not chosen"
_NO_GPU = "no GPU is passed to guests"

WITHOUT_EFFECT: Mapping[str, str] = {
    "MANAGER_QEMU_IGVM_FILE": "MANAGER_TEE_IGVM",
    "MANAGER_QEMU_OVMF_FILE": "MANAGER_TEE_FIRMWARE",
    "MANAGER_QEMU_QUOTE_GENERATION_PORT": "MANAGER_TEE_QUOTE_SOCKET=vsock:2:PORT",
    "MANAGER_QEMU_ENABLE_HOST_DATA": _BOUND,
    "MANAGER_QEMU_HOST_DATA": _BOUND,
    "MANAGER_PCR_VALUES": _BOUND,
    "MANAGER_ATTESTATION_POLICY_BINARY_PATH": _BOUND,
    "MANAGER_ATTESTATION_POLICY_BINARY": _BOUND,
    "MANAGER_IGVMMEASURE_BINARY": _BOUND,
    "MANAGER_SEV_SNP_POLICY": "MANAGER_TEE_POLICY",
    **dict.fromkeys(
        (
            *("MANAGER_MRSEAM", "MANAGER_MRTD", "MANAGER_TD_ATTRIBUTES", "MANAGER_XFAM"),
            *(f"MANAGER_RTMR{number}" for number in range(4)),
        ),
        _BOUND,
    ),
    "MANAGER_GRPC_SERVER_CA_CERTS": _CLIENTS,
    "MANAGER_HTTP_SERVER_CA_CERTS": _CLIENTS,
    "MANAGER_GRPC_TIMEOUT": "it is a client's",
    "MANAGER_QEMU_ENABLE_DISK": "a VM of CreateVm has a disk if MANAGER_TEE_KERNEL is not set",
    "MANAGER_QEMU_DST_DISK_FILE": _EACH_VM,
    "MANAGER_QEMU_CERTS_MOUNT": _EACH_VM,
    "MANAGER_QEMU_ENV_MOUNT": _EACH_VM,
    "MANAGER_QEMU_VIRTIO_NET_PCI_ADDR": _FIXED,
    "MANAGER_QEMU_TDX_ID": _FIXED,
    "MANAGER_QEMU_IGVM_ID": _FIXED,
    "MANAGER_QEMU_MEM_ID": _FIXED,
    "MANAGER_QEMU_GPU_BDF": _NO_GPU,
    "MANAGER_QEMU_GPU_PCIE_ROOT_PORT": _NO_GPU,
    "MANAGER_QEMU_GPU_PCIE_BUS": _NO_GPU,
    "MANAGER_QEMU_GPU_FW_CFG_MMIO_MB": _NO_GPU,
}


def markdown_table() -> str:
    """The table in docs/from-the-original.md."""
    rows = ["| variable without an effect | instead |", "| --- | --- |"]
    return "\n".join([*rows, *(f"| `{name}` | {why} |" for name, why in WITHOUT_EFFECT.items())])

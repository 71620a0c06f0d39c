"""Settings of confidential guests, and the words that a guest's policy is made of.

TEE, trusted execution environment, is the field's word for what keeps a guest's memory from its
host.
"""

from __future__ import annotations

import enum
import re
from pathlib import Path

import attrs

from supervisor.config.settings import choice, parsed_by, setting
from supervisor.errors import nearest


@choice
class Tee(enum.StrEnum):
    """How a VM's memory is kept from its host. ``auto``: the best that the host can start."""

    NONE = "none"
    AUTO = "auto"
    SEV = "sev"
    SEV_ES = "sev-es"
    SEV_SNP = "sev-snp"
    TDX = "tdx"


@enum.unique
class PolicyWord(enum.StrEnum):
    """What a guest's policy allows or demands; with ``no-`` before it, what it does not.

    Which technology knows which word, and what holds if nobody says: `supervisor.tee.policy`.
    """

    DEBUG = "debug"
    SMT = "smt"
    SINGLE_SOCKET = "single-socket"
    MIGRATION_AGENT = "migration-agent"
    KEY_SHARING = "key-sharing"
    SEND = "send"
    CXL = "cxl"
    AES_256_XTS = "aes-256-xts"
    RAPL = "rapl"
    CIPHERTEXT_HIDING = "ciphertext-hiding"
    PAGE_SWAP = "page-swap"


_NOT = "no-"


@attrs.frozen
class Policy:
    """A policy in words, as far as somebody has said it.

    :param words: whether each holds
    """

    words: tuple[tuple[PolicyWord, bool], ...] = ()

    @classmethod
    def read(cls, text: str) -> Policy:
        """:raises ValueError: if a word is not known, or contradicts another"""
        said: dict[PolicyWord, bool] = {}
        for given in filter(None, (part.strip().lower() for part in text.split(","))):
            holds = not given.startswith(_NOT)
            name = given.removeprefix(_NOT)
            if name not in list(PolicyWord):
                known = [f"{prefix}{word}" for word in PolicyWord for prefix in ("", _NOT)]
                raise ValueError(f"{given!r} is no word of a guest's policy{nearest(given, known)}")
            if said.setdefault(PolicyWord(name), holds) is not holds:
                raise ValueError(f"{name} and no-{name} exclude each other")
        return cls(tuple(said.items()))

    def __str__(self) -> str:
        return ",".join(word if holds else f"{_NOT}{word}" for word, holds in self.words)


parsed_by(Policy.read, Policy)


@attrs.frozen
class QuoteSocket:
    """Where Intel's quote generation service listens: a path, or a vsock address.

    :param cid, port: None with a path
    """

    path: Path | None = None
    cid: int | None = None
    port: int | None = None

    @classmethod
    def read(cls, text: str) -> QuoteSocket:
        """:raises ValueError: if it is neither"""
        if text.startswith("/"):
            return cls(Path(text))
        if found := re.fullmatch(r"vsock:([0-9]{1,10}):([0-9]{1,10})", text):
            return cls(cid=int(found[1]), port=int(found[2]))
        raise ValueError("must be an absolute path, or vsock:CID:PORT such as vsock:2:4050")

    def __str__(self) -> str:
        return str(self.path) if self.path else f"vsock:{self.cid}:{self.port}"


parsed_by(QuoteSocket.read, QuoteSocket)


@attrs.frozen(kw_only=True)
class TeeConfig:
    """What confidential guests are started with."""

    use: Tee | None = setting(
        "MANAGER_TEE",
        None,
        "what VMs are unless their run says otherwise: none; auto: the best that the host can"
        " start; sev, sev-es, sev-snp, tdx: that, or refuse to start",
        shown="as MANAGER_QEMU_ENABLE_SEV says",
    )
    policy: Policy = setting(
        "MANAGER_TEE_POLICY",
        Policy(),
        "the guest's policy in words, such as no-debug,no-rapl; a run can have its own",
        shown="",
    )
    firmware: Path | None = setting(
        "MANAGER_TEE_FIRMWARE",
        None,
        "OVMF in one file, which is measured; SEV and SEV-ES do without: then it is the pair of"
        " MANAGER_QEMU_OVMF_*",
        shown="the first OVMF that says that it can",
    )
    kernel: Path | None = setting(
        "MANAGER_TEE_KERNEL",
        None,
        "kernel that confidential VMs boot directly, measured; VMs of CreateVm, and those whose"
        " agent dials, boot it as well",
        "MANAGER_QEMU_DISK_IMG_KERNEL_FILE",
    )
    initrd: Path | None = setting(
        "MANAGER_TEE_INITRD",
        None,
        "its initramfs, measured as well",
        "MANAGER_QEMU_DISK_IMG_ROOTFS_FILE",
    )
    cmdline: str = setting(
        "MANAGER_TEE_CMDLINE",
        "",
        "its command line, measured as well",
        "MANAGER_QEMU_KERNEL_CMDLINE",
    )
    igvm: Path | None = setting(
        "MANAGER_TEE_IGVM",
        None,
        "IGVM file that the guest starts from, in place of firmware and kernel",
    )
    id_block: Path | None = setting(
        "MANAGER_TEE_ID_BLOCK", None, "sev-snp: id block of 96 bytes, which names the measurement"
    )
    id_auth: Path | None = setting(
        "MANAGER_TEE_ID_AUTH", None, "sev-snp: its signature, an id authentication of 4096 bytes"
    )
    quote_socket: QuoteSocket | None = setting(
        "MANAGER_TEE_QUOTE_SOCKET",
        None,
        "tdx: Intel's quote generation service, by path or as vsock:CID:PORT",
        shown="/var/run/tdx-qgs/qgs.socket if it is there, else vsock:2:4050",
    )
    signing_key: Path | None = setting(
        "MANAGER_CORIM_SIGNING_KEY",
        None,
        "PEM file of the private key that expected values are signed with, as CoRIM",
    )

"""Who calls, by what the connection and the request say; certificates; files that change."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from supervisor.api.auth import certificates, tokens
from supervisor.api.auth.certificates import Names
from supervisor.api.auth.door import STRANGER, Door, Peer
from supervisor.api.auth.files import Watched
from supervisor.caller import ANYBODY, Caller, KnownBy, Role
from supervisor.config import AccessConfig, Auth
from supervisor.errors import HostError, Unauthenticated, UnknownCertificate

if TYPE_CHECKING:
    from pathlib import Path

ALICE = Names((("cn", "alice"), ("email", "alice@example.org")))
MAP = """\
[[certificate]]
email = "alice@example.org"
name = "alice"
role = "run"

[[certificate]]
cn = "bob"
dns = "bob.example.org"
name = "bob"
role = "read"
"""


def make_door(directory: Path, auth: Auth = Auth.ON, **access: Any) -> Door:
    return Door(auth, AccessConfig(**access), directory / "tokens.json")


def create(directory: Path, name: str = "carol") -> str:
    _, secret = tokens.create(directory / "tokens.json", name, Role.RUN, None, tokens.now())
    return secret


# --- who ---------------------------------------------------------------------------------------


def test_stranger(tmp_path: Path) -> None:
    with pytest.raises(Unauthenticated, match="does not say who calls"):
        make_door(tmp_path).caller(STRANGER, [])


def test_nobody_is_asked(tmp_path: Path) -> None:
    assert make_door(tmp_path, Auth.OFF).caller(STRANGER, ["Bearer x"]) == ANYBODY


@pytest.mark.parametrize("uid", [0, os.geteuid()])
def test_root_and_the_supervisors_user_are_admins(tmp_path: Path, uid: int) -> None:
    assert make_door(tmp_path).caller(Peer(uid=uid), []) == Caller(
        f"uid:{uid}", Role.ADMIN, KnownBy.SOCKET
    )


@pytest.mark.parametrize("role", [Role.RUN, Role.READ])
def test_other_users_have_the_settings_role(tmp_path: Path, role: Role) -> None:
    caller = make_door(tmp_path, socket_role=role).caller(Peer(uid=12345), [])
    assert caller == Caller("uid:12345", role, KnownBy.SOCKET)


def test_user_without_a_number_of_his_own(tmp_path: Path) -> None:
    with pytest.raises(Unauthenticated, match="no number"):
        make_door(tmp_path).caller(Peer(uid=65534), [])


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER  {}"])
def test_token(tmp_path: Path, form: str) -> None:
    door, secret = make_door(tmp_path), create(tmp_path)
    assert door.caller(STRANGER, [form.format(secret)]).name == "carol"


@pytest.mark.parametrize(
    "forms",
    [
        [""],
        ["Bearer"],
        ["Bearer "],
        ["{}"],
        ["Basic {}"],
        ["Bearer\t{}"],
        ["Bearer {} x"],
        ["Bearer {}\n"],
        [" Bearer {}"],
        ["Bearer {}, Bearer {}"],
        ["Bearer é"],
        ["Bearer {}", "Bearer {}"],
        ["Bearer {}", ""],
    ],
)
@pytest.mark.parametrize("peer", [STRANGER, Peer(uid=0), Peer(names=ALICE)])
def test_no_token_and_then_no_other_way_either(
    tmp_path: Path, forms: list[str], peer: Peer
) -> None:
    door, secret = make_door(tmp_path), create(tmp_path)
    with pytest.raises(Unauthenticated):
        door.caller(peer, [form.replace("{}", secret) for form in forms])


def test_token_counts_more_than_the_connection(tmp_path: Path) -> None:
    door, secret = make_door(tmp_path), create(tmp_path)
    for peer in (Peer(uid=0), Peer(names=ALICE)):
        assert door.caller(peer, [f"Bearer {secret}"]).name == "carol"


def test_tokens_of_now(tmp_path: Path) -> None:
    door = make_door(tmp_path)
    assert not door.knows_tokens
    shown = [f"Bearer {create(tmp_path)}"]
    assert door.caller(STRANGER, shown)
    tokens.revoke(tmp_path / "tokens.json", "carol", tokens.now())
    with pytest.raises(Unauthenticated, match="revoked"):
        door.caller(STRANGER, shown)
    (tmp_path / "tokens.json").unlink()
    with pytest.raises(Unauthenticated, match="not known"):
        door.caller(STRANGER, shown)


def test_broken_file_of_tokens_lets_nobody_in(tmp_path: Path) -> None:
    door, file = make_door(tmp_path), tmp_path / "tokens.json"
    shown = [f"Bearer {create(tmp_path)}"]
    assert door.caller(STRANGER, shown)
    good = file.read_text()
    file.write_text("{")
    with pytest.raises(Unauthenticated):
        door.caller(STRANGER, shown)
    file.write_text(good)
    assert door.caller(STRANGER, shown)


# --- certificates ------------------------------------------------------------------------------


def test_without_a_file_every_client_is_an_operator(tmp_path: Path) -> None:
    caller = make_door(tmp_path).caller(Peer(names=ALICE), [])
    assert caller == Caller("certificate:alice", Role.OPERATE, KnownBy.CERTIFICATE)


def test_file_of_clients(tmp_path: Path) -> None:
    file = tmp_path / "clients.toml"
    file.write_text(MAP)
    door = make_door(tmp_path, certificates=file)
    alice = door.caller(Peer(names=ALICE), [])
    assert alice == Caller("alice", Role.RUN, KnownBy.CERTIFICATE)
    for names in ((), (("cn", "alice@example.org"),), (("cn", "bob"),), (("email", "ALICE"),)):
        with pytest.raises(UnknownCertificate):
            door.caller(Peer(names=Names(names)), [])
    file.write_text(MAP.replace('"run"', '"read"'))
    assert door.caller(Peer(names=ALICE), []).role is Role.READ
    file.unlink()
    with pytest.raises(UnknownCertificate):  # and not the operator of no file
        door.caller(Peer(names=ALICE), [])


@pytest.mark.parametrize(
    "content",
    [
        "x",
        "certificates = []",
        "certificate = 1",
        '[[certificate]]\nname = "a"\nrole = "run"',
        '[[certificate]]\ncn = "a"\nrole = "run"',
        '[[certificate]]\ncn = "a"\nname = "a"\nrole = "root"',
        '[[certificate]]\ncn = "a"\nname = "uid:0"\nrole = "run"',
        '[[certificate]]\ncommon = "a"\ncn = "a"\nname = "a"\nrole = "run"',
    ],
)
def test_file_of_clients_that_is_wrong(tmp_path: Path, content: str) -> None:
    file = tmp_path / "clients.toml"
    file.write_text(content)
    with pytest.raises(HostError, match=r"clients\.toml"):
        make_door(tmp_path, certificates=file)


def test_both_wires_find_the_same_names() -> None:
    ssl_shows = {
        "subject": ((("organizationName", "O"),), (("commonName", "alice"),)),
        "subjectAltName": (
            ("DNS", "a.example.org"),
            ("email", "alice@example.org"),
            ("URI", "spiffe://x/y"),
            ("IP Address", "192.0.2.1"),
        ),
    }
    grpc_shows = {
        "x509_common_name": [b"alice"],
        "peer_dns": [b"a.example.org"],
        "peer_email": [b"alice@example.org"],
        "peer_uri": [b"spiffe://x/y"],
        "transport_security_type": [b"ssl"],
    }
    assert set(Names.of_ssl(ssl_shows).names) == set(Names.of_grpc(grpc_shows).names)
    assert len(Names.of_ssl(ssl_shows).names) == 4


def test_entries_are_tried_in_their_order() -> None:
    first, second = (
        certificates.Entry(name=name, role=Role.RUN, cn="alice") for name in ("first", "second")
    )
    assert certificates.find([first, second], ALICE).name == "first"


# --- files ---------------------------------------------------------------------------------------


def test_file_is_read_when_it_changes_and_not_before(tmp_path: Path) -> None:
    file, reads = tmp_path / "file", []

    def read() -> str:
        reads.append(1)
        return file.read_text()

    file.write_text("1")
    watched = Watched([file], read)
    assert (watched.get(), watched.get(), len(reads)) == ("1", "1", 1)
    (tmp_path / "new").write_text("2")  # as long, and as old if the clock is coarse
    (tmp_path / "new").replace(file)
    assert (watched.get(), watched.get(), len(reads)) == ("2", "2", 2)
    watched.reload()
    assert (watched.get(), len(reads)) == ("2", 3)


def test_last_good_value_stays_without_another(tmp_path: Path) -> None:
    file = tmp_path / "file"

    def read() -> int:
        if file.read_text() == "worst":
            raise HostError("bad")
        return int(file.read_text())

    with pytest.raises(OSError, match="file"):
        Watched([file], read)
    file.write_text("1")
    watched, strict = Watched([file], read), Watched([file], read, broken=0)
    file.write_text("bad")
    assert (watched.get(), strict.get()) == (1, 0)
    file.write_text("22")
    assert (watched.get(), strict.get()) == (22, 22)
    file.write_text("worst")
    assert (watched.get(), strict.get()) == (22, 0)
    file.write_text("333")
    assert (watched.get(), strict.get()) == (333, 333)
    file.unlink()
    assert (watched.get(), strict.get()) == (333, 0)

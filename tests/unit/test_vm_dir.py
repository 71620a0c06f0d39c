"""A VM's directory: what is made in it, and what is said when that cannot be done."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

import grpc
import pytest
import trio

from supervisor.config import DiskConfig, FirmwareConfig, RestartPolicy
from supervisor.errors import HostError, ImageError, LaunchError
from supervisor.pb import agent_pb2
from supervisor.pb.agent_pb2_grpc import AgentServiceStub
from supervisor.state import vm_dir
from supervisor.state.disk import make_overlay
from supervisor.state.tmp_dir import check_tmp, close_tmp
from supervisor.state.vm_dir import MAX_SOCKET_PATH, VmDir


def firmware(tmp: Path) -> FirmwareConfig:
    made = FirmwareConfig(code_file=tmp / "CODE.fd", vars_file=tmp / "VARS.fd")
    made.code_file.write_bytes(b"code")
    made.vars_file.write_bytes(b"boot order")
    return made


def base_image(tmp: Path, kind: str = "qcow2") -> DiskConfig:
    image = tmp / f"base.{kind}"
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, str(image), "1M"], check=True)
    return DiskConfig(file=image, format=kind)


# --- tmp/ -----------------------------------------------------------------------------------


def test_tmp_is_made(short_tmp: Path) -> None:
    check_tmp(short_tmp / "a" / "b")
    assert (short_tmp / "a" / "b").is_dir()
    assert {file.name for file in (short_tmp / "a" / "b").iterdir()} <= {"lock"}
    assert (short_tmp / "a" / "b").stat().st_mode & 0o777 == 0o700


def tmp_of_length(directory: Path, longest: int) -> Path:
    """A path below the directory at which the longest socket's path has so many bytes."""
    rest = longest - len(os.fsencode(VmDir(directory / "x" / ("f" * 36)).qmp_socket)) + 1
    return directory / ("x" * rest)


def test_longest_path_of_a_socket(short_tmp: Path) -> None:
    longest = tmp_of_length(short_tmp, MAX_SOCKET_PATH)
    check_tmp(longest)
    vm_dir = VmDir(longest / ("f" * 36))
    vm_dir.path.mkdir()
    with vm_dir.listen_qmp() as listener:
        assert listener.getsockname() == str(vm_dir.qmp_socket)
    vm_dir.qmp_socket.unlink()


def test_one_byte_more_is_refused_before_it_fails(short_tmp: Path) -> None:
    with pytest.raises(HostError, match="107 bytes") as caught:
        check_tmp(tmp_of_length(short_tmp, MAX_SOCKET_PATH + 1))
    assert "MANAGER_QEMU_TMP_FILE_LOC" in str(caught.value)


def test_bytes_count_and_not_letters(short_tmp: Path) -> None:
    with pytest.raises(HostError, match="107 bytes"):
        check_tmp(short_tmp / ("\N{SNOWMAN}" * 20))


def test_tmp_below_a_file(short_tmp: Path) -> None:
    (short_tmp / "file").touch()
    with pytest.raises(HostError, match="MANAGER_QEMU_TMP_FILE_LOC"):
        check_tmp(short_tmp / "file" / "tmp")


def test_tmp_that_cannot_be_written_to() -> None:
    """Root may write everywhere but there."""
    with pytest.raises(HostError, match="cannot be written to"):
        check_tmp(Path("/sys/tmp"))


# --- the disk -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qcow2", "raw"])
def test_overlay_reads_through_to_the_base_image(short_tmp: Path, kind: str) -> None:
    disk = base_image(short_tmp, kind)
    make_overlay(disk, short_tmp / "overlay")
    shown = subprocess.run(
        ["qemu-img", "info", "--output=json", str(short_tmp / "overlay")],
        check=True,
        capture_output=True,
    )
    info = json.loads(shown.stdout)
    assert info["format"] == "qcow2"
    assert info["full-backing-filename"] == str(disk.file)
    assert info["backing-filename-format"] == kind
    assert info["virtual-size"] == 1024 * 1024


def test_relative_image_is_found_from_the_overlay(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = base_image(short_tmp)
    monkeypatch.chdir(short_tmp)
    (short_tmp / "deep").mkdir()
    relative = DiskConfig(file=disk.file.relative_to(short_tmp))
    make_overlay(relative, short_tmp / "deep" / "overlay")
    subprocess.run(["qemu-img", "check", "-q", "deep/overlay"], check=True)


def test_missing_image(short_tmp: Path) -> None:
    with pytest.raises(ImageError, match="MANAGER_QEMU_DISK_IMG_FILE") as caught:
        make_overlay(DiskConfig(file=short_tmp / "none.img"), short_tmp / "overlay")
    assert str(short_tmp / "none.img") in str(caught.value)


def test_empty_image_is_called_empty(short_tmp: Path) -> None:
    image = short_tmp / "base.img"
    image.touch()
    with pytest.raises(ImageError, match="is empty; build one") as caught:
        make_overlay(DiskConfig(file=image), short_tmp / "overlay")
    assert str(image) in str(caught.value)


def test_relative_path_of_an_image_is_told_in_full(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(short_tmp)
    with pytest.raises(ImageError) as caught:
        make_overlay(DiskConfig(file=Path("img/none.img")), short_tmp / "overlay")
    assert str(short_tmp / "img/none.img") in str(caught.value)


@pytest.mark.parametrize("content", [b"not a disk" * 100, b"QFI\xfb" + b"\xff" * 600])
def test_image_that_is_not_what_its_format_says(short_tmp: Path, content: bytes) -> None:
    image = short_tmp / "base.img"
    image.write_bytes(content)
    with pytest.raises(ImageError, match="MANAGER_QEMU_DISK_IMG_FORMAT") as caught:
        make_overlay(DiskConfig(file=image), short_tmp / "overlay")
    assert str(image) in str(caught.value)
    assert caught.value.exit_code == 1
    assert "backing image" in caught.value.log_tail


def test_image_that_is_a_directory(short_tmp: Path) -> None:
    with pytest.raises(ImageError):
        make_overlay(DiskConfig(file=short_tmp), short_tmp / "overlay")


def test_no_qemu_img(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = base_image(short_tmp)
    monkeypatch.setenv("PATH", str(short_tmp))
    with pytest.raises(LaunchError, match="qemu-utils"):
        make_overlay(disk, short_tmp / "overlay")


# --- the directory --------------------------------------------------------------------------


def directory(tmp: Path) -> VmDir:
    """A VM's, as `store` makes it."""
    vm_dir = VmDir(tmp / "vm")
    vm_dir.path.mkdir()
    return vm_dir


async def test_directory_of_a_vm(short_tmp: Path) -> None:
    vm_dir = directory(short_tmp)
    config = firmware(short_tmp)
    await vm_dir.prepare(base_image(short_tmp), config)
    made = [vm_dir.firmware_vars, vm_dir.overlay, vm_dir.serial_log]
    assert sorted(vm_dir.path.iterdir()) == made
    assert vm_dir.firmware_vars.read_bytes() == config.vars_file.read_bytes()


async def test_variables_can_be_written_though_their_template_cannot(short_tmp: Path) -> None:
    vm_dir = directory(short_tmp)
    config = firmware(short_tmp)
    config.vars_file.chmod(0o444)
    await vm_dir.prepare(base_image(short_tmp), config)
    assert vm_dir.firmware_vars.stat().st_mode & 0o200


@pytest.mark.parametrize("missing", ["CODE.fd", "base.qcow2"])
async def test_preparation_that_fails(short_tmp: Path, missing: str) -> None:
    disk, config = base_image(short_tmp), firmware(short_tmp)
    (short_tmp / missing).unlink()
    with pytest.raises(LaunchError, match=missing):
        await directory(short_tmp).prepare(disk, config)


async def test_directory_that_is_gone(short_tmp: Path) -> None:
    with pytest.raises(LaunchError, match="No such file or directory") as caught:
        await VmDir(short_tmp / "vm").prepare(base_image(short_tmp), firmware(short_tmp))
    assert str(short_tmp / "vm") in str(caught.value)


async def test_memory_of_a_template_has_no_holes_on_a_tmpfs(short_tmp: Path) -> None:
    """/dev/shm is one on every Linux."""
    disk, config, size = base_image(short_tmp), firmware(short_tmp), 4 << 20
    with tempfile.TemporaryDirectory(dir="/dev/shm") as on_tmpfs:
        vm_dir = directory(Path(on_tmpfs))
        await vm_dir.prepare(disk, config, size)
        shown = vm_dir.ram.stat()
        assert (shown.st_size, shown.st_blocks * 512) == (size, size)
        file_system = os.statvfs(on_tmpfs)
        too_much = 2 * file_system.f_blocks * file_system.f_frsize
        with pytest.raises(LaunchError, match=f"{vm_dir.ram}"):
            await vm_dir.prepare(disk, config, too_much)


@pytest.mark.parametrize("disks", [True, False])
async def test_what_an_ended_vm_needs_no_more(short_tmp: Path, disks: bool) -> None:
    vm_dir = directory(short_tmp)
    kept = [vm_dir.record, vm_dir.events, vm_dir.serial_log, vm_dir.qemu_log]
    gone = [vm_dir.qmp_socket, vm_dir.agent_socket, vm_dir.computation]
    for file in (*kept, *gone, vm_dir.overlay, vm_dir.firmware_vars):
        file.touch()
    vm_dir.clear(disks=disks)
    vm_dir.clear(disks=disks)
    left = {*kept} if disks else {*kept, vm_dir.overlay, vm_dir.firmware_vars}
    assert set(vm_dir.path.iterdir()) == left


async def test_computation_that_cannot_be_removed_harms_nobody(short_tmp: Path) -> None:
    vm_dir = directory(short_tmp)
    vm_dir.computation.mkdir()
    await vm_dir.drop_computation()
    assert vm_dir.computation.exists()


async def test_whoever_connects_before_qemu_waits_for_its_greeting(short_tmp: Path) -> None:
    vm_dir = VmDir(short_tmp)
    with vm_dir.listen_qmp() as listener:
        early = await trio.open_unix_socket(str(vm_dir.qmp_socket))
        connection, _ = listener.accept()
        with connection:
            connection.send(b"greeting")
        async with early:
            assert await early.receive_some() == b"greeting"
    vm_dir.qmp_socket.unlink()


def test_address_of_an_agent_that_no_port_leads_to(short_tmp: Path) -> None:
    """gRPC takes a path as a URI has it."""
    assert VmDir(Path("/tmp/a-b")).agent_address == "unix:/tmp/a-b/rpc.sock"
    vm_dir = VmDir(short_tmp / "of 100% ä")
    vm_dir.path.mkdir()
    with vm_dir.listen_agent() as listener, grpc.insecure_channel(vm_dir.agent_address) as channel:
        listener.settimeout(60)
        call = AgentServiceStub(channel).Run.future(agent_pb2.RunRequest())
        connection, _ = listener.accept()
        connection.close()
        call.cancel()
    vm_dir.agent_socket.unlink()


def test_socket_of_an_attempt_before_is_replaced(short_tmp: Path) -> None:
    vm_dir = VmDir(short_tmp)
    for _ in range(2):
        with vm_dir.listen_qmp():
            assert vm_dir.qmp_socket.is_socket()
    vm_dir.qmp_socket.unlink()


@pytest.mark.parametrize(
    ("log", "tail"),
    [
        (b"", ""),
        (b"one\n", "one"),
        ("".join(f"{number}\n" for number in range(30)).encode(), "27\n28\n29"),
        (b"\xff\n", "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_last_lines_of_the_log(short_tmp: Path, log: bytes, tail: str) -> None:
    vm_dir = VmDir(short_tmp)
    assert vm_dir.log_tail() == ""
    vm_dir.qemu_log.write_bytes(log)
    assert vm_dir.log_tail(lines=3) == tail


@pytest.mark.parametrize(
    ("printed", "words"),
    [
        (b"", ", nothing so far"),
        (b"\x1b[2J\x1b[01;01H\r\n", ", nothing so far"),
        (b"one\r\n[guest 1.5] init\r\n\r\n", ", last:\none\n[guest 1.5] init"),
        (b"1\n2\n3\n4\n5\n6\n", ", last:\n2\n3\n4\n5\n6"),
        (b"\x1b[1;31mred\x07\x1b[0m\x9b", ", last:\nred\N{REPLACEMENT CHARACTER}"),
        (b"\n" + b"x" * 9000, f", last:\n{'x' * 197}…"),
    ],
    ids=["nothing", "cleared", "lines", "many", "escapes", "long"],
)
def test_what_was_printed(short_tmp: Path, printed: bytes, words: str) -> None:
    vm_dir = VmDir(short_tmp)
    assert vm_dir.what_was_printed().endswith(", nothing so far")
    vm_dir.serial_log.write_bytes(printed)
    assert vm_dir.what_was_printed() == f"what the guest printed is in {vm_dir.serial_log}{words}"


def test_end_of_a_very_long_log(short_tmp: Path) -> None:
    vm_dir = VmDir(short_tmp)
    vm_dir.qemu_log.write_bytes(b"x" * 10_000_000 + b"\nthe end\n")
    assert vm_dir.log_tail().endswith("\nthe end")
    assert len(vm_dir.log_tail()) < 10_000


def test_a_tmp_that_everybody_may_write_to_is_refused(short_tmp: Path) -> None:
    tmp = short_tmp / "t"
    tmp.mkdir()
    tmp.chmod(0o1777)
    with pytest.raises(HostError, match="everybody may write"):
        check_tmp(tmp)


def test_a_tmp_that_others_may_look_into_is_closed(short_tmp: Path) -> None:
    tmp = short_tmp / "t"
    tmp.mkdir()
    tmp.chmod(0o755)
    close_tmp(tmp, None)
    assert tmp.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_a_tmp_of_another_user_is_refused(short_tmp: Path) -> None:
    """Its owner could put a link where the supervisor writes."""
    tmp = short_tmp / "t"
    tmp.mkdir()
    (tmp / "lock").symlink_to("../victim")
    os.chown(tmp, 65534, 65534)
    with pytest.raises(HostError, match="belongs to the user 65534"):
        check_tmp(tmp)
    assert not (short_tmp / "victim").exists()


def test_a_lock_that_is_a_link_is_not_followed(short_tmp: Path) -> None:
    (short_tmp / "lock").symlink_to("victim")
    with pytest.raises(HostError, match="cannot be written to"):
        check_tmp(short_tmp)
    assert not (short_tmp / "victim").exists()


@pytest.mark.parametrize("restart", RestartPolicy)
def test_what_a_vm_boots_with_after_a_reboot_of_the_host_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restart: RestartPolicy
) -> None:
    """Else its agent would get an empty computation, and have no secret to ask its callers for."""
    synced: list[Path] = []
    monkeypatch.setattr(vm_dir, "sync", synced.append)
    made = VmDir(tmp_path)
    made.have_computation(b"c", restart)
    assert made.computation.read_bytes() == b"c"
    never = restart is RestartPolicy.NEVER
    assert synced == ([] if never else [made.computation, made.secret])

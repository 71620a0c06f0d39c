"""What decides how an image is made: archive, module order, sections, packages, manifest."""

from __future__ import annotations

import io
import lzma
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from supervisor.agent import reference
from supervisor.image import command, disk, image, libraries, modules, packages, rootfs
from supervisor.image.command import ImageBuildError
from supervisor.image.cpio import entry, write_cpio
from supervisor.image.manifest import File, Manifest

if TYPE_CHECKING:
    from collections.abc import Callable


def members(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Mode and content by name."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        numbers = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, length = numbers[1], numbers[6], numbers[11]
        assert numbers[2:4] == [0, 0]
        name = archive[at + 110 : at + 110 + length - 1].decode()
        start = at + -(-(110 + length) // 4) * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, archive[start : start + size])
        at = start + -(-size // 4) * 4


def test_an_archive_holds_the_tree_sorted_and_a_console(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    program = tmp_path / "usr/bin/tool"
    program.write_bytes(b"#!")
    program.chmod(0o4700)
    (tmp_path / "bin").symlink_to("usr/bin")
    (tmp_path / "etc").write_text("data\n")
    (tmp_path / "etc").chmod(0o600)
    archive = io.BytesIO()
    write_cpio(tmp_path, archive, mtime=0)
    found = members(archive.getvalue())
    assert list(found) == ["bin", "etc", "usr", "usr/bin", "usr/bin/tool", "dev/console"]
    assert found["bin"] == (0o120755, b"usr/bin")
    assert found["etc"] == (0o100644, b"data\n")
    assert found["usr/bin/tool"] == (0o100755, b"#!")
    assert found["dev/console"][0] == 0o020600


def test_an_archive_depends_on_nothing_but_the_files(tmp_path: Path) -> None:
    archives = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for file in ("x", "y") if name == "a" else ("y", "x"):
            (tmp_path / name / file).write_text(file)
        archive = io.BytesIO()
        write_cpio(tmp_path / name, archive, mtime=1)
        archives.append(archive.getvalue())
    assert archives[0] == archives[1]


def test_members_are_padded_to_four_bytes() -> None:
    assert all(len(entry("n" * length, 0o100644, 1, 0, b"abc")) % 4 == 0 for length in range(1, 9))


VERSION = "6.1"


def module(exports: str = "", needs: str = "") -> bytes:
    """A kernel module that exports one symbol and needs another, made by binutils."""
    source = '.section .modinfo\n.string "license=GPL"\n'
    if exports:
        source += f'.section __ksymtab_strings\n.string "{exports}"\n'
    if needs:
        source += f".data\n.quad {needs}\n"
    with tempfile.TemporaryDirectory() as name:
        target = Path(name) / "module.ko"
        subprocess.run(["as", "-o", target], input=source.encode(), check=True)
        return target.read_bytes()


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """The modules' directory of an unpacked kernel that has virtio_pci built in."""
    kernel = tmp_path / "usr/lib/modules" / VERSION
    (kernel / "kernel").mkdir(parents=True)
    (tmp_path / "lib").symlink_to("usr/lib")
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        (kernel / name).touch()
    (kernel / "modules.builtin").write_text("kernel/drivers/virtio/virtio_pci.ko\n")
    return kernel


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".ko": bytes,
    ".ko.xz": lzma.compress,
    # With its size in the frame, as a kernel's build writes it and newer versions of kmod need it.
    ".ko.zst": lambda data: (
        subprocess.run(
            ["zstd", "-q", f"--stream-size={len(data)}"],
            input=data,
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
    ),
}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_modules_are_plain_files_in_the_order_in_which_they_load(
    tmp_path: Path, kernel: Path, suffix: str
) -> None:
    files = {
        "virtio_net": module(needs="failover_register"),
        "failover": module(exports="failover_register", needs="ring"),
        "virtio-ring": module(exports="ring"),
        "virtio_console": module(needs="ring"),
        "pvpanic-mmio": module(),
        "sev-guest": module(needs="ring"),
        "i6300esb": module(needs="watchdog_register"),
        "watchdog": module(exports="watchdog_register"),
        "qemu_fw_cfg": module(),
        "9p": module(needs="watchdog_register"),
        "sound": module(),
    }
    for name, content in files.items():
        (kernel / f"kernel/{name}{suffix}").write_bytes(COMPRESS[suffix](content))
    target = tmp_path / "guest"
    modules.install(tmp_path, VERSION, target)
    assert (target / "early").read_text().split() == ["qemu_fw_cfg"]
    first = ["virtio_ring", "failover", "virtio_net", "virtio_console", "pvpanic_mmio"]
    assert (target / "first").read_text().split() == first
    assert (target / "later").read_text().split() == ["watchdog", "i6300esb", "sev_guest"]
    assert (target / "shares").read_text().split() == ["watchdog", "9p"]
    del files["sound"]
    installed = {path.stem: path.read_bytes() for path in target.glob("*.ko")}
    assert installed == {name.replace("-", "_"): content for name, content in files.items()}


def test_a_module_may_be_built_in(tmp_path: Path, kernel: Path) -> None:
    """Ubuntu's kernel has virtio_net so."""
    names = ("virtio_pci", "virtio_net", "virtio_console", "qemu_fw_cfg")
    (kernel / "modules.builtin").write_text("".join(f"kernel/{name}.ko\n" for name in names))
    modules.install(tmp_path, VERSION, tmp_path / "guest")
    assert (tmp_path / "guest/first").read_text() == ""


def test_a_kernel_without_network_or_callers_is_an_error(tmp_path: Path, kernel: Path) -> None:
    missing = "has no virtio_net and no virtio_console and no qemu_fw_cfg"
    with pytest.raises(ImageBuildError, match=missing):
        modules.install(tmp_path, VERSION, tmp_path / "guest")
    with pytest.raises(ImageBuildError, match="there is no directory"):
        modules.install(tmp_path, "6.2", tmp_path / "guest")


@pytest.mark.parametrize("content", [b"", b"not ELF", lzma.compress(module()), b"\x7fELF\x02\x01"])
def test_a_file_that_is_not_a_module_is_an_error(tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "virtio_net.ko"
    source.write_bytes(content)
    with pytest.raises(ImageBuildError, match="is not a kernel module"):
        modules.unpack(source, tmp_path / "target.ko")


def test_a_program_is_not_a_module(tmp_path: Path) -> None:
    shutil.copy("/bin/true", tmp_path / "true.ko")
    with pytest.raises(ImageBuildError, match="is not a kernel module"):
        modules.unpack(tmp_path / "true.ko", tmp_path / "target.ko")


@pytest.mark.parametrize("suffix", [".ko.xz", ".ko.new"])
def test_a_module_that_cannot_be_unpacked_is_an_error(tmp_path: Path, suffix: str) -> None:
    source = tmp_path / f"virtio_net{suffix}"
    source.write_bytes(b"neither")
    with pytest.raises(ImageBuildError, match="cannot unpack a module"):
        modules.unpack(source, tmp_path / "target.ko")


def test_sections_go_behind_those_of_the_stub() -> None:
    listing = """
Idx Name          Size      VMA               LMA               File off  Algn
  0 .text         0000b0c4  0000000000005000  0000000000005000  00000400  2**4
  1 .sbat         000000e4  0000000000016000  0000000000016000  0000de00  2**2
"""
    assert disk._end_of_sections(listing) == 0x17000


@pytest.mark.parametrize(
    ("files", "version"),
    [
        (["boot/vmlinuz-6.1.0-53-amd64", "boot/config-6.1.0-53-amd64"], "6.1.0-53-amd64"),
        (["usr/lib/modules/7.2.12+deb14-amd64/vmlinuz"], "7.2.12+deb14-amd64"),
    ],
    ids=["in boot/", "beside its modules"],
)
def test_a_kernel_is_found_where_its_packages_put_it(
    tmp_path: Path, files: list[str], version: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert image.find_kernel(tmp_path) == (tmp_path / files[0], version)


def test_no_kernel_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageBuildError, match="find the kernel"):
        image.find_kernel(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "  Depends: linux-image-6.1.0-53-amd64",
        "  Depends: linux-binary-7.2.12+deb14-amd64",
        "  Depends: linux-modules-7.2.12+deb14-amd64",
        "  Depends: linux-base-7.2.12+deb14-amd64",
        "  Depends: linux-modules-extra-6.8.0-31-generic",
    ],
)
def test_a_kernels_packages_are_known_by_their_names(line: str) -> None:
    assert packages._KERNEL_PART.findall(line) == [line.split()[1]]


def test_what_no_guest_loads_is_left_out() -> None:
    unused = {"perl-base", "dpkg", "gcc-12-base", "libdb5.3", "libprotobuf32", "python3-protobuf"}
    used = {"libc6", "python3-grpcio", "libabsl20220623", "libmount1", "libstdc++6", "zlib1g"}
    assert {name for name in unused | used if packages._UNUSED.fullmatch(name)} == unused


def test_a_failed_tool_says_which_step_and_how() -> None:
    with pytest.raises(ImageBuildError) as caught:
        command.run("ask", ["sh", "-c", "echo one; echo two >&2; exit 3"])
    assert (caught.value.step, caught.value.command[0]) == ("ask", "sh")
    assert caught.value.output_tail == "one\ntwo"
    assert str(caught.value).startswith("cannot ask (sh -c ")


def test_a_missing_tool_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "SEARCH_PATH", "/nowhere")
    with pytest.raises(ImageBuildError, match=r"apt-get install .*mtools"):
        command.require_tools()
    with pytest.raises(ImageBuildError, match="no-such-tool"):
        command.run("try", ["no-such-tool"])


def test_old_package_lists_are_named_as_the_cause() -> None:
    with pytest.raises(ImageBuildError, match="run apt-get update"):
        packages._apt("download", ["sh", "-c", "echo E: Unable to locate package x >&2; exit 100"])


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> type[BaseException]:
    """A build that is interrupted half way."""

    def make(work: Path, *_: object) -> Manifest:
        (work / "image").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(image, "make", make)
    monkeypatch.setattr(image, "require_tools", lambda: None)
    return KeyboardInterrupt


def test_an_interrupted_build_leaves_nothing(tmp_path: Path, failing: type[BaseException]) -> None:
    with pytest.raises(failing):
        image.build(tmp_path / "guest")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_something_else_is_not_replaced(
    tmp_path: Path, failing: type[BaseException]
) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(ImageBuildError, match="holds no image"):
        image.build(tmp_path)
    assert (tmp_path / "precious").exists()


def test_an_image_is_replaced_and_what_lies_beside_it_stays(tmp_path: Path) -> None:
    for name in ("guest", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / image.DISK).write_text(name)
    (tmp_path / "guest" / "cloud.qcow2").write_text("somebody's own")
    image.replace(tmp_path / "guest", tmp_path / "new", tmp_path / "old")
    now = {path.name: path.read_text() for path in (tmp_path / "guest").iterdir()}
    assert now == {image.DISK: "new", "cloud.qcow2": "somebody's own"}
    assert [path.read_text() for path in (tmp_path / "old").iterdir()] == ["guest"]


def test_an_agent_must_be_a_program_the_guest_can_run(tmp_path: Path) -> None:
    text = tmp_path / "agent"
    text.write_text("neither")
    with pytest.raises(ImageBuildError, match="neither a program"):
        image.check(tmp_path / "img", text, ())
    with pytest.raises(ImageBuildError, match="shared libraries"):
        image.check(tmp_path / "img", Path("/bin/ls"), ())


@pytest.mark.parametrize(
    ("agent", "told"),
    [(None, "unrecognized arguments: --trust"), (Path("/bin/ls"), "the reference agent alone")],
)
def test_arguments_are_those_of_the_reference_agent(
    tmp_path: Path, agent: Path | None, told: str
) -> None:
    with pytest.raises(ImageBuildError, match=told):
        image.check(tmp_path / "img", agent, ["--trust"])
    image.check(tmp_path / "img", None, ["--trust-algorithms", "--algorithm-timeout-s", "60"])


def test_an_agent_is_python_or_a_program(tmp_path: Path) -> None:
    program, script = tmp_path / "other", tmp_path / "mine.py"
    program.write_bytes(b"\x7fELF")
    script.write_text("pass\n")
    assert [rootfs.is_program(path) for path in (None, script, program)] == [False, False, True]
    found = [
        set(rootfs.packages(path)) - {*rootfs.PYTHON, *rootfs.BUSYBOX}
        for path in (None, script, program)
    ]
    assert found == [{"python3-h2", "tcc"}, {"python3-grpcio"}, set()]
    start = tmp_path / rootfs.GUEST / "agent"
    start.parent.mkdir(parents=True)
    rootfs.install_agent(tmp_path, program, ())
    assert start.read_bytes() == b"\x7fELF"
    assert start.stat().st_mode & 0o777 == 0o755
    rootfs.install_agent(tmp_path, script, ())
    assert start.with_suffix(".py").read_text() == "pass\n"
    assert "agent.pyc" in start.read_text()
    rootfs.install_agent(tmp_path, None, ["--trust-algorithms"])
    assert "agent.__main__" in start.read_text()
    assert "main(['--in-guest', '--trust-algorithms'])" in start.read_text()
    installed = {path.name for path in (tmp_path / rootfs.REFERENCE_AGENT).iterdir()}
    assert installed == {path.name for path in Path(reference.__path__[0]).glob("*.py")}


def test_libraries_are_kept_for_what_needs_them() -> None:
    needed = {"ssl": ["crypto", "c"], "crypto": ["c"], "c": ["ld"], "ld": [], "krb5": ["c"]}
    assert libraries.reachable(["ssl"], needed) == {"ssl", "crypto", "c", "ld"}
    assert libraries.reachable(["absent"], needed) == {"absent"}


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    manifest = Manifest(
        agent="reference",
        clone_safe=True,
        kernel="6.1",
        command_line="quiet",
        built_at="2024-01-01T00:00:00Z",
        packages={"libc6": "2.36"},
        files={"file": File.of(tmp_path / "file")},
    )
    assert manifest.files["file"].sha256.startswith("ba7816bf")
    assert manifest.files["file"].size == 3
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files":{},"format":1}'])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match="no manifest"):
        Manifest.read(tmp_path)

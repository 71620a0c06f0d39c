"""Launch measurements of SEV and SEV-ES: ours, and libvirt's virt-qemu-sev-validate.

No measurement of a real processor was at hand. These are computed as AMD's document says, and the
two programs are held against each other: they share no code.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as some
from sevsnpmeasure.sev_mode import SevMode

from supervisor.cli import main
from supervisor.tee import sev
from supervisor.tee.evidence import BadEvidence
from tests.unit.test_measure import TABLE, first_registers, ovmf

if TYPE_CHECKING:
    from click.testing import Result

KEY, NONCE = bytes(range(16)), bytes(range(100, 116))
THEIRS = Path(__file__).parents[2] / ".qemu" / "virt-qemu-sev-validate"


@attrs.frozen(kw_only=True)
class Launch:
    """What was launched, and what the processor would say of it."""

    measured: bytes
    policy: int = 0xB
    api: tuple[int, int] = (1, 55)
    build: int = 24

    @property
    def answer(self) -> bytes:
        said = bytes([4, *self.api, self.build]) + self.policy.to_bytes(4, "little")
        said += hashlib.sha256(self.measured).digest() + NONCE
        return hmac.digest(KEY, said, "sha256") + NONCE


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An owner's files."""
    (tmp_path / "ovmf.fd").write_bytes(ovmf())
    (tmp_path / "kernel").write_bytes(b"kernel" * 1000)
    (tmp_path / "initrd").write_bytes(b"initrd")
    (tmp_path / "tik").write_bytes(KEY)
    (tmp_path / "tek").write_bytes(bytes(16))
    return tmp_path


FIRMWARE = ("--firmware", "ovmf.fd")
BOOTED = (*FIRMWARE, "--kernel", "kernel", "--initrd", "initrd", "--cmdline", "a=b quiet")


def ours(place: Path, answer: bytes, *options: str) -> Result:
    (place / "measurement").write_text(base64.b64encode(answer).decode())
    files = ("ovmf.fd", "kernel", "initrd", "tik")
    words = [str(place / word) if word in files else word for word in options]
    said = {"--policy": "0xb", "--api": "1.55", "--build-id": "24"}
    for name, value in said.items():
        words += [] if name in words else [name, value]
    command = ["verify", "sev", str(place / "measurement"), "--tik", str(place / "tik")]
    return CliRunner().invoke(main, [*command, *words])


@pytest.mark.parametrize(
    ("launch", "options", "code"),
    [
        (Launch(measured=ovmf()), FIRMWARE, 0),
        (Launch(measured=ovmf() + TABLE), BOOTED, 0),
        (Launch(measured=ovmf()), ("--digest", hashlib.sha256(ovmf()).hexdigest()), 0),
        (Launch(measured=ovmf()), ("--digest", "00" * 32), 1),
        (Launch(measured=ovmf()), ("--digest", "00" * 32, "--kernel", "kernel"), 4),
        (Launch(measured=ovmf()), ("--digest", "00" * 32, "--cmdline", "a"), 4),
        (Launch(measured=ovmf()), ("--digest", "00" * 32, "--vcpus", "99"), 4),
        (Launch(measured=ovmf()), (*FIRMWARE, "--cpu", "EPYC"), 4),
        (Launch(measured=ovmf()), BOOTED, 1),
        (Launch(measured=ovmf() + TABLE), FIRMWARE, 1),
        (Launch(measured=ovmf()), (*FIRMWARE, "--policy", "0x9"), 1),
        (Launch(measured=ovmf()), (*FIRMWARE, "--api", "1.54"), 1),
        (Launch(measured=ovmf()), (*FIRMWARE, "--build-id", "23"), 1),
        (Launch(measured=ovmf(), policy=0xA), (*FIRMWARE, "--policy", "0xa"), 3),
        (Launch(measured=ovmf(), policy=0xA), (*FIRMWARE, "--policy", "10", "--allow-debug"), 0),
        (Launch(measured=ovmf(), policy=0x9), (*FIRMWARE, "--policy", "0x9"), 3),
        (
            Launch(measured=ovmf(), policy=0x1),
            (*FIRMWARE, "--policy", "1", "--allow-send", "--allow-key-sharing"),
            0,
        ),
    ],
)
def test_exit_codes(place: Path, launch: Launch, options: tuple[str, ...], code: int) -> None:
    done = ours(place, launch.answer, *options)
    assert done.exit_code == code, done.output
    assert ("not verified: " in done.output) is (code in (1, 3))


THREE_CPUS = ("--vcpus", "3", "--cpu", "EPYC-v4")


def without_floating_point(registers: bytes) -> bytes:
    """As older kernels hand them over: MXCSR and the x87 control word are zero."""
    assert (registers[0x408:0x40A], registers[0x410:0x412]) == (b"\x80\x1f", b"\x7f\x03")
    return registers[:0x408] + bytes(2) + registers[0x40A:0x410] + bytes(2) + registers[0x412:]


OLD_ES = Launch(
    measured=ovmf()
    + TABLE
    + b"".join(map(without_floating_point, first_registers(SevMode.SEV_ES, 0, 3))),
    policy=0xF,
)
ES = Launch(measured=ovmf() + TABLE + b"".join(first_registers(SevMode.SEV_ES, 0, 3)), policy=0xF)


@pytest.mark.parametrize(
    ("cpus", "code"),
    [
        (("--vcpus", "3", "--cpu", "EPYC-v4"), 0),
        (("--vcpus", "2", "--cpu", "EPYC-v4"), 1),
        (("--vcpus", "3", "--cpu", "EPYC-Milan"), 1),
        (("--vcpus", "3", "--cpu", "host"), 4),
        (("--vcpus", "3"), 4),
        ((), 4),
    ],
)
def test_registers_are_measured_under_sev_es(place: Path, cpus: tuple[str, ...], code: int) -> None:
    done = ours(place, ES.answer, *BOOTED, "--policy", "0xf", *cpus)
    assert done.exit_code == code, done.output


def test_older_kernels_measure_fewer_registers(place: Path) -> None:
    asked = (*BOOTED, "--policy", "0xf", *THREE_CPUS)
    for launch, codes in ((ES, (0, 1)), (OLD_ES, (1, 0))):
        found = [
            ours(place, launch.answer, *asked, *options).exit_code
            for options in ((), ("--legacy-vm-type",))
        ]
        assert tuple(found) == codes


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ((), "say either --digest or --firmware"),
        ((*FIRMWARE, "--digest", "00" * 32), "say either --digest or --firmware"),
        ((*FIRMWARE, "--initrd", "initrd"), "--initrd and --cmdline need --kernel"),
        (("--digest", "00"), "has 1 bytes, not 32"),
        ((*FIRMWARE, "--policy", "0x100000003"), "is no policy of SEV"),
        (("--digest", "00" * 32, "--policy", "-1"), "is no policy of SEV"),
        ((*FIRMWARE, "--api", "1"), "is not MAJOR.MINOR"),
        ((*FIRMWARE, "--api", "1.256"), "is not MAJOR.MINOR"),
        ((*FIRMWARE, "--build-id", "256"), "256 is not in the range"),
        (("--firmware", "/no/such/file"), "does not exist"),
    ],
)
def test_bad_arguments(place: Path, options: tuple[str, ...], problem: str) -> None:
    done = ours(place, Launch(measured=ovmf()).answer, *options)
    assert (done.exit_code, problem in done.output) == (4, True), done.output


@pytest.mark.parametrize("write", [bytes, base64.b64encode, lambda b: b.hex().encode()])
def test_forms_of_files(place: Path, write: Any) -> None:
    (place / "tik").write_bytes(write(KEY))
    answer = Launch(measured=ovmf()).answer
    assert sev.read_measurement(write(answer)) == sev.LaunchMeasurement(answer[:32], NONCE)
    assert ours(place, answer, *FIRMWARE).exit_code == 0


def test_each_bit_of_the_measurement_counts(place: Path) -> None:
    answer = Launch(measured=ovmf()).answer
    digest = hashlib.sha256(ovmf()).digest()
    for at in range(8 * len(answer)):
        flipped = bytearray(answer)
        flipped[at // 8] ^= 1 << at % 8
        checks = sev.verify(
            sev.read_measurement(bytes(flipped)), KEY, sev.Platform(1, 55, 24), 0xB, digest,
            frozenset(),
        )  # fmt: skip
        assert [one.field for one in checks if one.verdict == "failed"] == ["measurement"], at


def test_as_json(place: Path) -> None:
    launch = Launch(measured=ovmf(), policy=0xA)
    done = ours(place, launch.answer, *FIRMWARE, "--policy", "0xa", "--json")
    answer = json.loads(done.output)
    assert (answer["exit_code"], answer["verified"]) == (3, False)
    assert {one["field"]: one["verdict"] for one in answer["checks"]} == {
        "measurement": "ok",
        "policy: debug": "insecure",
        "policy: key-sharing": "ok",
        "policy: send": "ok",
    }


@given(some.binary(max_size=100))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    for read in (sev.read_key, sev.read_measurement):
        with suppress(BadEvidence):
            read(content)


# --- libvirt's program ----------------------------------------------------------------------


def theirs(place: Path, answer: bytes, *options: str) -> int:
    """Its exit code."""
    command = [
        sys.executable,
        str(THEIRS),
        *("--measurement", base64.b64encode(answer).decode()),
        *("--api-major", "1", "--api-minor", "55", "--build-id", "24"),
        *("--tik", "tik", "--tek", "tek", *options),
    ]
    # What it has beside its offline mode: libvirt's daemon, and a domain's XML.
    beside = Path(__file__).parents[1] / "support" / "libvirt_offline"
    done = subprocess.run(
        command,
        cwd=place,
        env={"PYTHONPATH": str(beside)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.returncode


@pytest.fixture
def _is_there() -> None:
    if not THEIRS.exists():
        pytest.skip(f"{THEIRS} is missing: scripts/test could not unpack Debian's package")


EPYC = ("--cpu-family", "23", "--cpu-model", "1", "--cpu-stepping", "2")


@pytest.mark.usefixtures("_is_there")
@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
@pytest.mark.parametrize(
    ("launch", "files"),
    [(Launch(measured=ovmf()), FIRMWARE), (Launch(measured=ovmf() + TABLE), BOOTED)],
    ids=["firmware", "kernel"],
)
def test_both_programs_say_the_same(
    place: Path, launch: Launch, files: tuple[str, ...], right: bool
) -> None:
    if not right:
        (place / "ovmf.fd").write_bytes(b"\1" + ovmf()[1:])
    asked = (*files, "--policy", str(launch.policy))
    code = 0 if right else 1
    assert ours(place, launch.answer, *asked).exit_code == code
    assert theirs(place, launch.answer, *asked) == code


@pytest.mark.usefixtures("_is_there")
def test_both_programs_say_the_same_of_sev_es(place: Path) -> None:
    """Theirs knows one kind of kernels: the older one, at least up to libvirt 9.0."""
    asked = (*BOOTED, "--policy", "15")
    found = {
        legacy: (
            ours(place, launch.answer, *asked, *THREE_CPUS, *legacy).exit_code,
            theirs(place, launch.answer, *asked, "--num-cpus", "3", *EPYC),
        )
        for legacy, launch in (((), ES), (("--legacy-vm-type",), OLD_ES))
    }
    assert sorted(found.values()) == [(0, 0), (0, 1)]

"""``compute``, ``send`` and ``result``: from data and an algorithm to what it computes."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import stat
import sys
import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn, cast

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from supervisor.cli.client import complete_id, find, one_vm, uses_supervisor
from supervisor.cli.computations import request_body
from supervisor.cli.environment import CommandFailed, fail
from supervisor.cli.output import as_json, echo, print_json, stderr
from supervisor.cli.run import follow, stop_signals
from supervisor.config.settings import parse_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from supervisor.client import Client, models

_PIECE = 1 << 20

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_algorithm = click.option(
    "--algorithm", type=_FILE, help="A Python program, or a zip archive with a __main__.py."
)
_output = click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File for the result; default: standard output.",
)


def _time(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """A mistake is told before a VM is started."""
    try:
        parse_seconds(value or "1s")
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return value


def _memory(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"[1-9][0-9]{0,6}[MGmg]", value):
        raise click.BadParameter("must be a size such as 256M")
    return value


@click.command()
@_algorithm
@click.option(
    "--data",
    type=_FILE,
    multiple=True,
    help="A data set; may be repeated: they have the numbers 0, 1, ...",
)
@_output
@click.option(
    "--vm",
    "vm_id",
    metavar="ID",
    shell_complete=complete_id,
    help="A VM that is there, which runs on afterwards.",
)
@click.option(
    "--computation", type=click.File("rb"), help="What a new VM is started for, as run takes it."
)
@click.option("--time-limit", callback=_time, help="Longest time of the algorithm, such as 10m.")
@click.option(
    "--memory-limit", callback=_memory, help="Most memory of the algorithm, such as 256M."
)
@click.option("--keep", is_flag=True, help="Let a new VM run on afterwards.")
@as_json
@uses_supervisor
def compute(
    client: Client,
    /,
    algorithm: Path | None,
    data: tuple[Path, ...],
    output: Path | None,
    vm_id: str | None,
    computation: IO[bytes] | None,
    keep: bool,
    as_json: bool,
    **limits: str | None,
) -> None:
    """Have a VM run an algorithm over data, and fetch the result.

    The VM is a new one, which ends once its result is here; or, with --vm, one that is there. What
    was sent to that one before need not be sent again.

    The result goes to the file or to standard output, all else to standard error. The exit code is
    1 if the algorithm fails; what it has printed is shown.
    """
    if as_json and output is None:
        raise click.UsageError("--json needs --output: standard output has the result otherwise")
    if vm_id is None and not (algorithm and data):
        raise click.UsageError("a new VM needs --algorithm and --data")
    if vm_id is not None and (computation or keep):
        raise click.UsageError("--computation and --keep are for a new VM, not for --vm")
    _check_place(output)
    if vm_id is not None:
        with _a_vm(find(client, vm_id)) as found:
            outcome = _compute(client, found, algorithm, data, limits)
        _tell(client, outcome, output, as_json=as_json)
        return
    body = request_body(computation.read() if computation else b"{}", raw=False)
    with _new_vm(client, body, keep=keep) as found:
        outcome = _compute(client, found, algorithm, data, limits)
    _tell(client, outcome, output, as_json=as_json)


@click.command()
@one_vm
@_algorithm
@click.option("--data", type=_FILE, help="A data set.")
@click.option("--number", type=int, default=0, show_default=True, help="Of the data set.")
@as_json
@uses_supervisor
def send(
    client: Client,
    vm_id: str,
    algorithm: Path | None,
    data: Path | None,
    number: int,
    as_json: bool,
) -> None:
    """Send an algorithm or a data set to a VM's agent: see compute."""
    if not (algorithm or data):
        raise click.UsageError("say --algorithm, --data, or both")
    if number and not data:
        raise click.UsageError("--number is of --data")
    found = find(client, vm_id)
    stored = _send(client, found, algorithm, {number: data} if data else {})
    if as_json:
        print_json({"sent": stored})
        return
    for one in stored:
        echo(f"{one['part']}: {one['size']} bytes, SHA-256 {one['sha256']}", lines=False)


@click.command()
@one_vm
@_output
@as_json
@uses_supervisor
def result(client: Client, vm_id: str, output: Path | None, as_json: bool) -> None:
    """Fetch what the last algorithm in a VM has computed, also after the VM's end."""
    if as_json and output is None:
        raise click.UsageError("--json needs --output: standard output has the result otherwise")
    _check_place(output)
    outcome = client.outcome(find(client, vm_id))
    _tell(client, outcome, output, as_json=as_json)


def _compute(
    client: Client,
    vm_id: str,
    algorithm: Path | None,
    data: tuple[Path, ...],
    limits: dict[str, str | None],
) -> models.Outcome:
    _send(client, vm_id, algorithm, dict(enumerate(data)))
    wanted = cast("models.ComputeRequest", {k: v for k, v in limits.items() if v is not None})
    if data:
        # What the VM has of an earlier time is no part of this.
        wanted["datasets"] = len(data)
    with stderr().status("the algorithm runs"):
        return client.compute(vm_id, wanted)


def _send(
    client: Client, vm_id: str, algorithm: Path | None, data: dict[int, Path]
) -> list[models.Stored]:
    stored = []
    if algorithm:
        stored.append(_put(partial(client.send_algorithm, vm_id), algorithm))
    for number, file in data.items():
        stored.append(_put(partial(client.send_data, vm_id, number), file))
    return stored


def _put(send: Callable[..., models.Stored], file: Path) -> models.Stored:
    try:
        size = file.stat().st_size
        digest = hashlib.sha256()
        with file.open("rb") as opened:
            while piece := opened.read(_PIECE):
                digest.update(piece)
        with file.open("rb") as opened, _progress(f"sending {file.name}", size) as advance:

            def pieces() -> Iterator[bytes]:
                while piece := opened.read(_PIECE):
                    yield piece
                    advance(len(piece))

            return send(pieces(), size=size, sha256=digest.digest())
    except OSError as error:
        raise CommandFailed(f"{file} cannot be read: {error.strerror}") from error


def _tell(client: Client, outcome: models.Outcome, output: Path | None, *, as_json: bool) -> None:
    """Fetch the result of an algorithm that has succeeded; or end with what went wrong."""
    succeeded = outcome["state"] == "succeeded"
    if succeeded:
        _fetch(client, outcome, output)
    if as_json:
        print_json(outcome)
        sys.exit(not succeeded)
    console = stderr()
    for name in ("stdout", "stderr"):
        if printed := outcome[name].rstrip("\n"):
            console.print(f"{name} of the algorithm:\n{printed}", soft_wrap=True)
    if not succeeded:
        raise CommandFailed(f"{outcome['state']}: {outcome['error']} (VM {outcome['vm']})")
    count = len(outcome["data_sha256"])
    over = f"{count} data set{'s' if count > 1 else ''}"
    seconds, size = outcome["duration_s"], outcome["result_size"]
    console.print(f"computed over {over} in {seconds:.1f} s: {size} bytes")


def _fetch(client: Client, outcome: models.Outcome, output: Path | None) -> None:
    """Complete or not at all: a file has its name only once its SHA-256 is right."""
    size, digest = outcome["result_size"], hashlib.sha256()
    # A device or a pipe is written to; whatever else is there is replaced.
    replaces = output is not None and (output.is_file() or not output.exists())
    try:
        with (
            _written(output, replaces=replaces) as file,
            _progress("fetching the result", size) as advance,
            client.result(outcome["vm"]) as pieces,
        ):
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
                advance(len(piece))
            if digest.hexdigest() != outcome["result_sha256"]:
                raise CommandFailed("the result did not arrive whole: fetch it again, see 'result'")
    except OSError as error:
        raise CommandFailed(
            f"{output or 'standard output'}: {error.strerror}; fetch the result again with"
            f" 'qmp-supervisor result {outcome['vm']}'"
        ) from error


def _check_place(output: Path | None) -> None:
    """Before anything is computed that could not be written."""
    if output and not output.exists() and not os.access(output.resolve().parent, os.W_OK):
        raise click.UsageError(f"{output.resolve().parent} is no directory that can be written to")
    if output and output.exists() and not os.access(output, os.W_OK):
        raise click.UsageError(f"{output} cannot be written")


@contextmanager
def _written(output: Path | None, *, replaces: bool) -> Iterator[IO[bytes]]:
    if output is None or not replaces:
        with click.open_file(str(output or "-"), "wb") as file:
            yield file
        return
    place = output.resolve()  # a link stays one
    descriptor, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
    try:
        with open(descriptor, "wb") as draft:
            yield draft
            # As a file that is opened has it; this one is for its owner alone until then.
            mode = place.stat().st_mode if place.exists() else 0o666 & ~_umask()
            os.chmod(draft.fileno(), stat.S_IMODE(mode))
        Path(name).replace(place)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    """The kernel tells it only by another being set."""
    now = os.umask(0o077)
    os.umask(now)
    return now


@contextmanager
def _new_vm(client: Client, body: models.RunRequest, *, keep: bool) -> Iterator[str]:
    """A VM that ends with the block, unless it is kept. Ctrl-C ends it as well."""
    with stop_signals() as signals:
        with stderr().status("waiting for a VM"):
            vm_id = client.start(body)["id"]
        follow(client, vm_id, signals, quiet=True)

    try:
        with _exit_at_signals():
            if signals:  # of the moment before
                sys.exit(128 + signals[0])
            yield vm_id
    except BaseException:
        fail(f"ending VM {vm_id}")
        client.shutdown(vm_id, "force")
        raise
    if keep:
        stderr().print(f"VM {vm_id} runs on; end it with: qmp-supervisor shutdown {vm_id[:8]}")
    else:
        client.shutdown(vm_id, "force")


@contextmanager
def _a_vm(vm_id: str) -> Iterator[str]:
    """A VM that runs on, whatever becomes of the block."""
    try:
        with _exit_at_signals():
            yield vm_id
    except SystemExit:
        fail(f"the algorithm is killed; VM {vm_id} runs on")
        raise


@contextmanager
def _exit_at_signals() -> Iterator[None]:
    """Also of a shell's background, which would have SIGINT ignored."""

    def stop(number: int, _: object) -> NoReturn:
        sys.exit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress(what: str, size: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing in a pipe."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    console = stderr()
    with Progress(
        *columns, TransferSpeedColumn(), console=console, disable=not console.is_terminal
    ) as bars:
        task = bars.add_task(what, total=size)
        yield lambda amount: bars.update(task, advance=amount)

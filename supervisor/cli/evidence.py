"""``evidence``: what a running guest's processor says of it, for its owner to verify."""

from __future__ import annotations

import base64
import secrets
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from supervisor.cli.client import find, one_vm, uses_supervisor
from supervisor.cli.environment import CommandFailed
from supervisor.cli.output import as_json, print_json, stderr

if TYPE_CHECKING:
    from supervisor.client import Client, models

_NONCE_BYTES = 32


@click.command()
@one_vm
@click.option("--nonce", help="What the report must repeat, in hex. Default: a new one.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("evidence.bin"),
    show_default=True,
    help="File for the report or the quote.",
)
@as_json
@uses_supervisor
def evidence(client: Client, vm_id: str, nonce: str | None, output: Path, as_json: bool) -> None:
    """Have a VM's processor report on its guest, under SEV-SNP or TDX.

    Prints the command that verifies the report, which needs no supervisor. A nonce that somebody
    else has chosen does not show that the report is new.
    """
    nonce = nonce or secrets.token_hex(_NONCE_BYTES)
    found = find(client, vm_id)
    answer = client.attestation(found, nonce)
    try:
        output.write_bytes(base64.b64decode(answer["evidence"]))
    except OSError as error:
        raise CommandFailed(f"{output} cannot be written: {error.strerror}") from error
    command = _command(answer, output, nonce)
    if as_json:
        print_json({**answer, "nonce": nonce, "output": str(output), "verify": command})
        return
    console = stderr()
    console.print(f"the report of VM {answer['vm']} is in {output}; verify it with:")
    click.echo(command)
    if answer["certificate"]:
        console.print(
            "put in the place of CERTIFICATE the file of the one that your own connection to the"
            " agent shows"
        )
    console.print(
        f"what else to expect, in the operator's words: GET /vms/{found}/attestation-policy"
    )


def _command(answer: models.Evidence, output: Path, nonce: str) -> str:
    """Ready to be pasted into a shell. What is in capitals the owner puts in."""
    kind = "tdx" if answer["tee"] == "tdx" else "snp"
    key = ["--tls-certificate", "CERTIFICATE"] if answer["certificate"] else []
    words = ["qmp-supervisor", "verify", kind, str(output), "--nonce", nonce, *key]
    return shlex.join([*words, "--computation", "COMPUTATION"])

"""Real NATS servers, each at a loopback address of its own, with the files of `fleet init`."""

from __future__ import annotations

import random
import shutil
import sys
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio

from supervisor.config import Address
from supervisor.fleet import authority
from supervisor.fleet.authority import Member

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_PROGRAM = Path(sys.executable).with_name("nats-server")
MEMBER_PORT = 9022


@attrs.define
class Broker:
    """One server. `start` after `kill` finds what it had."""

    member: Member
    directory: Path
    nursery: trio.Nursery
    process: trio.Process | None = None

    async def start(self) -> None:
        command = [str(_PROGRAM), "-c", str(self.directory / "nats.conf")]
        with (self.directory / "nats.log").open("ab") as output:
            run = partial(trio.run_process, command, stdout=output, stderr=output, check=False)
            self.process = await self.nursery.start(run)

    async def kill(self) -> None:
        assert self.process
        self.process.kill()
        await self.process.wait()


@attrs.define
class Brokers:
    """The members' files and their servers.

    :ivar url: what a supervisor is told
    """

    directory: Path
    members: list[Member]
    servers: list[Broker]

    @property
    def url(self) -> str:
        return ",".join(f"nats://{one.member.address.host}:4222" for one in self.servers)

    def settings(self, name: str) -> dict[str, str]:
        """Of the supervisor of this member."""
        file = self.directory / name / "fleet.env"
        return dict(line.split("=", 1) for line in file.read_text().splitlines())

    def files(self, name: str) -> Path:
        return self.directory / name


@asynccontextmanager
async def open_brokers(
    directory: Path, names: str = "a", servers: int = 1
) -> AsyncIterator[Brokers]:
    """A fleet's files, and its servers: one or three."""
    net = f"127.{random.randrange(16, 250)}.{random.randrange(1, 250)}"
    members = [
        Member(name, Address(f"{net}.{number}", MEMBER_PORT))
        for number, name in enumerate(names, 1)
    ]
    for member in members:
        # One at a time, because each has its files and its store where it is.
        at = directory / member.name
        authority.make(directory, members, installed=at, store=at / "store")
        shutil.copytree(at, directory / f"kept-{member.name}")
    for member in members:
        shutil.rmtree(directory / member.name)
        (directory / f"kept-{member.name}").rename(directory / member.name)
    async with trio.open_nursery() as nursery:
        made = [Broker(one, directory / one.name, nursery) for one in members[:servers]]
        for one in made:
            await one.start()
        try:
            yield Brokers(directory, members, made)
        finally:
            nursery.cancel_scope.cancel()

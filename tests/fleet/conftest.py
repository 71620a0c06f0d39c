"""Members of a fleet: supervisors with stand-ins for QEMU, each on its own host, and real NATS."""

from __future__ import annotations

import shutil
import signal
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from tests.support.brokers import Brokers, open_brokers
from tests.support.world import PATIENCE_S, World, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.guest import Apart


@attrs.define
class Fleet:
    """Hosts by the members' names, and the broker."""

    brokers: Brokers
    worlds: dict[str, World]

    @asynccontextmanager
    async def serve(self, name: str, **settings: str) -> AsyncIterator[Apart]:
        """A member, in a process of its own, once it is one.

        On leaving it stops in good order, unless the test has killed it.
        """
        world = self.worlds[name]
        async with world.serve_apart(**self.brokers.settings(name), **settings) as supervisor:
            await supervisor.wait_said("member of the fleet")
            yield supervisor
            if supervisor.process.returncode is not None:
                return
            for _ in range(2):  # the second signal does not ask the guests
                supervisor.process.send_signal(signal.SIGINT)
            with trio.fail_after(PATIENCE_S):
                assert await supervisor.process.wait() == 0

    @asynccontextmanager
    async def serve_both(self, **of_b: str) -> AsyncIterator[tuple[Apart, Apart]]:
        """Members a and b, who know each other.

        :param of_b: settings of b
        """
        async with self.serve("a") as a, self.serve("b", **of_b) as b:
            await a.wait_said("host joined", host="b")
            await b.wait_said("host joined", host="a")
            yield a, b


@pytest.fixture
async def fleet(short_tmp: Path, base_image: Path) -> AsyncIterator[Fleet]:
    """Two hosts, a and b."""
    async with _open_fleet(short_tmp, base_image, "ab") as fleet:
        yield fleet


@pytest.fixture
async def three(short_tmp: Path, base_image: Path) -> AsyncIterator[Fleet]:
    """Three hosts, each with a server of NATS: a, b and c."""
    async with _open_fleet(short_tmp, base_image, "abc", servers=3) as fleet:
        yield fleet


@asynccontextmanager
async def _open_fleet(
    directory: Path, image: Path, names: str, servers: int = 1
) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        worlds = {}
        for name in names:
            (directory / name).mkdir()
            worlds[name] = await stack.enter_async_context(open_world(directory / name))
            shutil.copyfile(image, worlds[name].image)
        brokers = await stack.enter_async_context(open_brokers(directory / "fleet", names, servers))
        yield Fleet(brokers, worlds)
        for world in worlds.values():
            assert world.free_again(), "a forwarded port is still in use"
            assert not world.sockets(), "a QMP socket is left"

"""Host ports: which are taken for a VM, and that they are its own until it ends."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from supervisor.config import NetConfig
from supervisor.config.settings import Port, PortRange
from supervisor.errors import PortsTaken
from supervisor.qemu.ports import PortPool, in_namespace, is_free
from tests.support.world import free_range, taken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.qemu.cmdline import Forward


@pytest.fixture
def first() -> int:
    """The first of forty free ports."""
    return free_range()[0]


def starting_at(one: int, two: int, three: int) -> NetConfig:
    return NetConfig(host_fwd_1=Port(one), host_fwd_2=Port(two), host_fwd_3=Port(three))


def bases(first: int) -> NetConfig:
    """Three starting points, ten ports apart."""
    return starting_at(first, first + 10, first + 20)


def in_range(first: int, count: int) -> NetConfig:
    return NetConfig(host_fwd_range=PortRange(first, first + count - 1))


def host_ports(forwards: Sequence[Forward]) -> list[int]:
    return [forward.host_port for forward in forwards]


def test_first_vm_has_the_ports_that_were_asked_for(first: int) -> None:
    with PortPool(bases(first)).reserve() as forwards:
        assert host_ports(forwards) == [first, first + 10, first + 20]
        assert [forward.guest_port for forward in forwards] == [22, 9031, 7002]
        assert {forward.host_address for forward in forwards} == {"127.0.0.1"}


def test_next_vm_has_the_next_ones(first: int) -> None:
    pool = PortPool(bases(first))
    with pool.reserve(), pool.reserve() as forwards:
        assert host_ports(forwards) == [first + 1, first + 11, first + 21]


def test_released_ports_are_given_out_again(first: int) -> None:
    pool = PortPool(bases(first))
    with pool.reserve() as once:
        pass
    with pool.reserve() as again:
        assert once == again


def test_ports_are_released_by_an_error_too(first: int) -> None:
    pool = PortPool(bases(first))
    with pytest.raises(ZeroDivisionError), pool.reserve():
        raise ZeroDivisionError
    with pool.reserve() as forwards:
        assert host_ports(forwards)[0] == first


def test_equal_bases_do_not_collide(first: int) -> None:
    with PortPool(starting_at(first, first, first)).reserve() as forwards:
        assert host_ports(forwards) == [first, first + 1, first + 2]


def test_port_of_somebody_else_is_passed_over(first: int) -> None:
    with taken(first), PortPool(bases(first)).reserve() as forwards:
        assert host_ports(forwards) == [first + 1, first + 10, first + 20]


def test_ports_to_avoid(first: int) -> None:
    with PortPool(bases(first)).reserve(avoid=[first, first + 20, first + 21]) as forwards:
        assert host_ports(forwards) == [first + 1, first + 10, first + 22]


def test_range(first: int) -> None:
    pool = PortPool(in_range(first, 7))
    with pool.reserve() as one, pool.reserve() as two:
        assert host_ports(one) == [first, first + 1, first + 2]
        assert host_ports(two) == [first + 3, first + 4, first + 5]
        with pytest.raises(PortsTaken, match="MANAGER_QEMU_HOST_FWD_RANGE"), pool.reserve():
            pass


def test_failed_reservation_keeps_nothing(first: int) -> None:
    pool = PortPool(in_range(first, 5))
    with ExitStack() as stack:
        stack.enter_context(pool.reserve())
        with pytest.raises(PortsTaken), pool.reserve():
            pass
    with pool.reserve() as forwards:
        assert host_ports(forwards) == [first, first + 1, first + 2]


def test_ports_end_at_65535() -> None:
    net = NetConfig(host_fwd_1=Port(65535))
    with pytest.raises(PortsTaken, match="65535 to 65535"), PortPool(net).reserve(avoid=[65535]):
        pass


def test_is_free(first: int) -> None:
    assert is_free("127.0.0.1", first)
    with taken(first):
        assert not is_free("127.0.0.1", first)
    assert is_free("127.0.0.1", first)


def test_bound_but_not_yet_listening_is_not_free_for_long() -> None:
    with socket.socket() as other:
        # Not one of ours: without SO_REUSEADDR it could not be bound after its last connection.
        other.bind(("127.0.0.1", 0))
        assert not is_free(*other.getsockname())


def test_address_that_is_not_ours_has_no_free_port(first: int) -> None:
    assert not is_free("192.0.2.1", first)


def test_ports_of_a_namespace_need_no_privilege_and_no_host() -> None:
    """Whatever ports the settings choose on the host."""
    forwards = in_namespace(starting_at(22, 22, 22))
    assert [one.guest_port for one in forwards] == [22, 9031, 7002]
    assert {one.host_address for one in forwards} == {"127.0.0.1"}
    assert len({one.host_port for one in forwards if one.host_port >= 1024}) == 3

"""From a VM to JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from supervisor.machine import shell_line

if TYPE_CHECKING:
    from datetime import datetime

    from supervisor.vm import Vm


def summary(vm: Vm) -> dict[str, Any]:
    """A row of ``GET /vms``."""
    return {
        "id": vm.id,
        "state": vm.status.state,
        "reason": vm.status.reason,
        "agent_ready": vm.agent_ready,
        "created_at": moment(vm.created_at),
        "uptime_s": seconds(vm.uptime_s),
        "forwards": [attrs.asdict(forward) for forward in vm.forwards],
    }


def answer(vm: Vm) -> dict[str, Any]:
    """``POST /run``, once the agent has answered."""
    return {
        "id": vm.id,
        "computation": vm.reply,
        "state": vm.status.state,
        "forwards": [attrs.asdict(forward) for forward in vm.forwards],
    }


def status(vm: Vm) -> dict[str, Any]:
    """``GET /vms/<id>/status``: the state, and what QEMU last said of itself."""
    facts = vm.facts
    return {
        "id": vm.id,
        "state": vm.status.state,
        "reason": vm.status.reason,
        "query_status": attrs.asdict(facts.run_status) if facts else None,
        "query_sev": _without_none(attrs.asdict(facts.sev)) if facts else None,
        "asked_at": moment(facts.at) if facts else None,
        "agent": {"ready": vm.agent_ready, "address": vm.agent_address},
        "uptime_s": seconds(vm.uptime_s),
    }


def everything(vm: Vm) -> dict[str, Any]:
    """``GET /vms/<id>``: all that is known."""
    return {
        **status(vm),
        "created_at": moment(vm.created_at),
        "ended_at": moment(vm.ended_at),
        "ended": vm.ended,
        "exit_code": vm.exit_code,
        "error": vm.error,
        "pid": vm.pid,
        "directory": str(vm.rundir.path),
        "forwards": [attrs.asdict(forward) for forward in vm.forwards],
        "argv": list(vm.command),
        "command": shell_line(vm.command),
        "relay": {"state": vm.relay_state, "computation": vm.reply},
        "phases_s": {name: seconds(at) for name, at in vm.phases.items()},
    }


def moment(at: datetime | None) -> str | None:
    """RFC 3339, to the millisecond, in UTC."""
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z") if at else None


def seconds(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}

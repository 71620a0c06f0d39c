"""From a VM to JSON."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs

from supervisor.qemu.cmdline import shell_line
from supervisor.state.record import Phase, moment
from supervisor.vm import claims

if TYPE_CHECKING:
    from supervisor.fleet.facts import HostFacts
    from supervisor.qemu.cmdline import Forward
    from supervisor.qemu.qapi import RunStatus, SevMeasurement, SevStatus
    from supervisor.runs.usage import Sample
    from supervisor.templates.registry import Entry
    from supervisor.vm.evidence import Evidence
    from supervisor.vm.vm import Vm


def summary(vm: Vm) -> dict[str, Any]:
    """A row of ``GET /vms``."""
    return {
        "id": vm.id,
        "state": vm.status.state,
        "reason": vm.status.reason,
        "ended": vm.ended,
        "owner": vm.record.owner or None,
        "purpose": vm.record.purpose,
        "labels": dict(vm.record.options.labels),
        "relay": {"state": vm.record.relay},
        "error": vm.record.error,
        "template": vm.record.template,
        "agent_ready": vm.agent_ready,
        "monitor": vm.monitor_state,
        "created_at": moment(vm.record.created_at),
        "ended_at": moment(vm.record.ended_at) if vm.record.ended_at else None,
        "uptime_s": seconds(vm.uptime_s),
        "forwards": [_forward(one) for one in vm.record.forwards],
        "tee": vm.record.options.tee,
        "attested": _attested(vm),
        "computed": vm.record.computed or None,
        "parties": _parties(vm),
    }


def answer(vm: Vm, reply: str) -> dict[str, Any]:
    """The answer of ``POST /run`` after the agent's answer."""
    return {
        "id": vm.id,
        "computation": reply,
        "state": vm.status.state,
        "forwards": [_forward(one) for one in vm.record.forwards],
        "credential": vm.credential,
        "tee": vm.record.options.tee,
    }


def status(vm: Vm) -> dict[str, Any]:
    """``GET /vms/<id>/status``: the state, and QEMU's last answers about itself."""
    facts = vm.facts
    return {
        "id": vm.id,
        "state": vm.status.state,
        "reason": vm.status.reason,
        "monitor": vm.monitor_state,
        "query_status": _run_status(facts.run_status) if facts else None,
        "query_sev": _sev(facts.sev) if facts else None,
        "tee": vm.record.options.tee,
        "insecure": claims.insecure(vm),
        "launch": vm.record.launch,
        "attested": _attested(vm),
        "asked_at": moment(facts.at) if facts else None,
        "agent": {
            "ready": vm.agent_ready,
            "address": vm.record.agent_address,
            "protected": vm.agent_protected,
            "reason": vm.agent_problem or None,
            "last_lost": vm.agent_last_lost or None,
        },
        "uptime_s": seconds(vm.uptime_s),
        "sequence": vm.record.sequence,
    }


def measurement(vm: Vm, found: SevMeasurement) -> dict[str, Any]:
    """``GET /vms/<id>/launch-measurement``."""
    status = found.status
    return {
        "vm": vm.id,
        "data": found.data,
        "api_major": status.api_major,
        "api_minor": status.api_minor,
        "build_id": status.build_id,
        "policy": status.policy,
    }


def usage(sample: Sample, vm_id: str) -> dict[str, Any] | None:
    """The member ``usage`` of a VM that runs."""
    found = sample.vms.get(vm_id)
    if found is None:
        return None
    return {"at": moment(sample.at), "cpu_s": found.cpu_s, "memory_bytes": found.memory_bytes}


def evidence(vm: Vm, found: Evidence) -> dict[str, Any]:
    """``POST /vms/<id>/attestation``."""
    return {
        "vm": vm.id,
        "tee": vm.record.options.tee,
        "report_data": found.report_data.hex(),
        "evidence": base64.b64encode(found.content).decode(),
        "certificate": found.certificate.decode() if found.certificate else None,
    }


def _attested(vm: Vm) -> dict[str, Any] | None:
    """Who let the guest run after he had its measurement, or had a report of it verified."""
    record = vm.record
    if record.attested_at is None:
        return None
    return {
        "by": record.attested_by or None,
        "at": moment(record.attested_at),
        "not_compared": list(record.attested_without),
    }


def _parties(vm: Vm) -> dict[str, Any] | None:
    """Who brings and gets what, and what has been brought."""
    parties = vm.record.options.parties
    if parties is None:
        return None
    agreed = parties.algorithm_sha256 or None
    return {**attrs.asdict(parties), "algorithm_sha256": agreed, "sent": list(vm.record.sent)}


def everything(vm: Vm) -> dict[str, Any]:
    """``GET /vms/<id>``: everything."""
    record = vm.record
    options = record.options
    return {
        **status(vm),
        "created_at": moment(record.created_at),
        "ended_at": moment(record.ended_at) if record.ended_at else None,
        "ended": vm.ended,
        "exit_code": record.exit_code,
        "error": record.error,
        "pid": vm.pid,
        "directory": str(vm.dir.path),
        "forwards": [attrs.asdict(forward) for forward in record.forwards],
        "argv": list(record.command),
        "command": shell_line(record.command),
        "relay": {"state": record.relay},
        "request_id": options.request_id or None,
        "ttl_s": options.ttl_s,
        "restart": {"policy": options.restart, "count": record.restarts},
        "keep_disk": options.keep_disk,
        "owner": record.owner or None,
        "parties": _parties(vm),
        "labels": dict(options.labels),
        "computed": record.computed or None,
        "purpose": record.purpose,
        "template": record.template,
        "tee_policy": claims.tee_policy(vm),
        "phases_s": {
            name: seconds(at) for name, at in record.phases.items() if name != Phase.EXPIRING
        },
    }


def server_timing(vm: Vm) -> str:
    """The header's value: the milliseconds from each phase to the next, and their sum."""
    spans = [*vm.record.steps, ("total", sum(took_s for _, took_s in vm.record.steps))]
    return ", ".join(f"{name};dur={took_s * 1000:.1f}" for name, took_s in spans)


def template(entry: Entry) -> dict[str, Any]:
    """A row of ``GET /templates``."""
    return {
        "digest": entry.template.name,
        "state": entry.state,
        "vm": entry.vm_id,
        "problem": entry.problem,
        "error": entry.error,
        "since": moment(entry.since),
        "built_in_s": seconds(entry.built_in_s),
        "size_bytes": entry.size_bytes,
        "clones": len(entry.holders),
        "failures": entry.failures,
    }


def host(facts: HostFacts) -> dict[str, Any]:
    """A row of ``GET /hosts``."""
    return {
        "name": facts.name,
        "address": facts.address,
        "version": facts.version,
        "qemu": facts.qemu,
        "firmware": facts.firmware,
        "image": facts.image or None,
        "template": facts.template,
        "tee": dict(facts.tee),
        "room": facts.room,
        "vms_free": facts.vms_free,
        "memory_free_bytes": facts.memory_free_bytes,
        "vcpus_free": facts.vcpus_free,
        "vm_memory_bytes": facts.vm_memory_bytes,
        "vm_vcpus": facts.vm_vcpus,
        "labels": dict(facts.labels),
        "draining": facts.draining,
        "since": moment(datetime.fromtimestamp(facts.since, UTC)),
    }


def seconds(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


# Spelled out: attrs.asdict would take half of an answer's time.


def _forward(forward: Forward) -> dict[str, Any]:
    return {
        "guest_port": forward.guest_port,
        "host_address": forward.host_address,
        "host_port": forward.host_port,
    }


def _run_status(answer: RunStatus) -> dict[str, Any]:
    return {"status": answer.status, "running": answer.running}


def _sev(answer: SevStatus) -> dict[str, Any]:
    if not answer.enabled:
        return {"enabled": False}
    return {name: value for name, value in attrs.asdict(answer).items() if value is not None}

"""What an owner asks of a confidential VM: what to expect, and the steps of a measured launch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio
from quart import Blueprint, Response, request

from supervisor.api.callers import current, needs
from supervisor.api.http import json_body, views
from supervisor.api.requests import EvidenceRequest, NoMembers, SecretRequest
from supervisor.caller import Right
from supervisor.errors import Busy
from supervisor.tee import checks, corim, expected
from supervisor.vm import attestation, claims, evidence

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.runs.service import Service
    from supervisor.vm.vm import Vm


#: The first is for who accepts all.
_FORMS = ("application/json", corim.PLAIN, corim.SIGNED)


def _signed(vm: Vm, key: Path | None) -> bytes:
    if key is None:
        raise Busy(
            "nothing is signed here: there is no key",
            advice=f"set MANAGER_CORIM_SIGNING_KEY, or ask for {corim.PLAIN}",
        )
    return claims.as_corim(vm, key)


def blueprint(service: Service) -> Blueprint:
    routes = Blueprint("attestation", __name__, url_prefix="/vms")

    @routes.get("/<vm_id>/attestation-policy")
    @needs(Right.SEE)
    async def attestation_policy(vm_id: str) -> Any:
        vm = service.vms.see(vm_id, current())
        match request.accept_mimetypes.best_match(_FORMS):
            case corim.PLAIN:
                return Response(claims.as_corim(vm, None), content_type=corim.PLAIN)
            case corim.SIGNED:
                key = service.config.qemu.tee.signing_key
                signed = await trio.to_thread.run_sync(_signed, vm, key)
                return Response(signed, content_type=corim.SIGNED)
        return {"vm": vm.id, **expected.document(claims.of(vm))}

    @routes.post("/<vm_id>/attestation")
    @needs(Right.USE)
    async def attest(vm_id: str) -> Any:
        # Each party asks for itself what it would trust.
        vm = service.vms.see(vm_id, current())
        wanted = await json_body.read(EvidenceRequest)
        found = await evidence.ask(vm, wanted.nonce)
        answer = views.evidence(vm, found)
        if request.args.get("verify") != "1":
            return answer
        leaf = wanted.leaf.encode() if wanted.leaf else None
        judged = await evidence.judge(vm, found, leaf, current().name)
        return answer | {"verdict": checks.document(judged)}

    @routes.get("/<vm_id>/launch-measurement")
    @needs(Right.USE)
    async def launch_measurement(vm_id: str) -> Any:
        vm = service.vms.get(vm_id, current())
        return views.measurement(vm, await attestation.measurement(vm))

    @routes.post("/<vm_id>/launch-secret")
    @needs(Right.USE)
    async def launch_secret(vm_id: str) -> Any:
        vm = service.vms.get(vm_id, current())
        packet = await json_body.read(SecretRequest)
        await attestation.inject(vm, packet.header, packet.secret)
        return views.status(vm)

    @routes.post("/<vm_id>/launch")
    @needs(Right.USE)
    async def launch(vm_id: str) -> Any:
        vm = service.vms.get(vm_id, current())
        await json_body.read_optional(NoMembers)
        await attestation.launch(vm, current().name)
        return views.status(vm)

    return routes

"""What a computation is told from, for agents that dial."""

from __future__ import annotations

from supervisor.agent import manifest
from supervisor.pb import cvms_pb2


def test_manifest_whose_bytes_look_like_json() -> None:
    """A field's length may be any character."""
    for identifier in ("c" * 0x7B, "{" + "c" * 31):
        whole = cvms_pb2.ComputationRunReq(id=identifier)
        assert manifest.parse(whole.SerializeToString()) == whole

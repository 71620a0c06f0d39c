"""Manifests: what an agent that dials the supervisor is sent as a computation. Pure.

A manifest is the message ``cvms.ComputationRunReq``, in protobuf's bytes or in its JSON.

Source: protobuf's "ProtoJSON Format".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf import json_format, message

from supervisor.errors import InvalidRequest, TooLarge
from supervisor.pb import cvms_pb2

if TYPE_CHECKING:
    from collections.abc import Collection

#: Protobuf makes an object of every other byte, and its JSON's decoder takes its time for each.
_LARGEST, _LARGEST_JSON = 1024 * 1024, 32 * 1024
_LONGEST_ID = 255
_HASH_BYTES = 32


def parse(computation: bytes) -> cvms_pb2.ComputationRunReq:
    """:raises InvalidRequest: if it is no manifest, or one that an agent could not take"""
    # Protobuf's bytes begin so with a field that nobody knows.
    is_json = computation[:1] == b"{"
    largest = _LARGEST_JSON if is_json else _LARGEST
    if len(computation) > largest:
        raise TooLarge(
            f"computation is {len(computation)} bytes, the limit of a manifest is {largest}"
            f" {'in JSON' if is_json else ''}".rstrip(),
            member="computation",
        )
    manifest = cvms_pb2.ComputationRunReq()
    try:
        if is_json:
            json_format.Parse(computation, manifest, max_recursion_depth=8)
        else:
            manifest.ParseFromString(computation)
    except (json_format.ParseError, message.DecodeError, UnicodeDecodeError) as error:
        raise _wrong(f"is no manifest: {error}") from None
    if not 0 < len(manifest.id) <= _LONGEST_ID:
        raise _wrong(f"has an id of {len(manifest.id)} characters, and needs 1 to {_LONGEST_ID}")
    if manifest.HasField("algorithm"):
        _check_hash("an algorithm", manifest.algorithm.hash)
    for dataset in manifest.datasets:
        _check_hash("a dataset", dataset.hash)
    return manifest


def check_port(manifest: cvms_pb2.ComputationRunReq, reachable: Collection[int]) -> None:
    """Whether the agent will listen where its callers come in.

    :param reachable: the guest's ports that ports of the host lead to
    :raises InvalidRequest: if it is told to listen on another
    """
    port = manifest.agent_config.port
    if port and port not in map(str, reachable):
        known = ", ".join(map(str, reachable))
        raise _wrong(f"has the agentConfig.port {port[:16]!r}, and callers reach the ports {known}")


def _check_hash(whose: str, digest: bytes) -> None:
    """The agent copies it without a look at its length, and would end."""
    if len(digest) != _HASH_BYTES:
        raise _wrong(
            f"has {whose} with a hash of {len(digest)} bytes: SHA3-256 has 32, in JSON as base64"
        )


def _wrong(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"computation {why}",
        member="computation",
        advice="with MANAGER_AGENT_DIALS a computation is a cvms.ComputationRunReq: see"
        " docs/how-to/use-the-successors-guests.md",
    )

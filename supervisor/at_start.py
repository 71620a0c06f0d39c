"""What a supervisor finds out about its host before it serves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import structlog

from supervisor.api.sockets import check_pem
from supervisor.config import Auth
from supervisor.errors import HostError, LaunchError
from supervisor.qemu import (
    accel,
    firmware,
    groups,
    measured,
    network,
    scopes,
    trial,
    users,
)
from supervisor.qemu.host import Host
from supervisor.state.disk import check_image
from supervisor.state.tmp_dir import check_tmp, close_tmp
from supervisor.tee import binding, corim, policy, reading

if TYPE_CHECKING:
    from supervisor.config import AccessPaths, Config
    from supervisor.qemu.cmdline import Accel
    from supervisor.qemu.host import Clock

log = structlog.stdlib.get_logger()


def on_this_host(config: Config) -> Config:
    """The configuration with this host's firmware, C-bit and resolved path of tmp/. Blocking."""
    qemu = config.qemu
    chosen = firmware.choose(qemu, firmware.read_descriptors())
    sev = qemu.sev
    if sev.cbitpos is None and (leaf := reading.encryption_leaf()):
        sev = attrs.evolve(sev, cbitpos=leaf.c_bit)
    # Resolved, because a VM is found again by the path on its command line.
    qemu = attrs.evolve(qemu, tmp=Path(os.path.realpath(qemu.tmp)), firmware=chosen, sev=sev)
    return attrs.evolve(config, qemu=qemu)


def access_paths(config: Config) -> AccessPaths:
    """Where sockets and tokens are. Source of the variable: systemd.exec(5), RuntimeDirectory=."""
    runtime = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return config.access.paths(Path(runtime) if runtime else None, config.qemu.tmp)


def examine(config: Config, clock: Clock) -> Host:
    """Check this host against the settings. Blocking. Logs a warning for each thing VMs will lack.

    :raises HostError: if the host does not offer what the settings require
    """
    check_tmp(config.qemu.tmp)
    agent = config.agent
    check_pem("TLS to agents", agent.client_cert, agent.client_key, agent.ca_certs)
    as_users = users.choose(config.qemu)
    close_tmp(config.qemu.tmp, as_users.gid)
    network.check(config.qemu.net, as_users.shared)
    qemu = accel.find_qemu(config.qemu)
    decided, warnings = accel.decide(config.qemu, qemu, as_users.shared)
    users.check_access(config.qemu, as_users, decided)
    trial.check(config.qemu, qemu, decided, as_users.shared)
    most, keeper = groups.bounds(config.qemu, decided), config.qemu.scopes
    in_groups = groups.Groups(None if keeper else groups.delegated(), most)
    in_scopes = scopes.Scopes(keeper, most)
    host = Host(qemu, config.qemu.use_sudo, decided, as_users, in_groups, in_scopes, clock)
    host.look_at_qemu()  # now, and not while the first run waits
    descriptors = firmware.read_descriptors()
    if problem := firmware.mismatch(config.qemu.firmware, descriptors):
        raise HostError(problem.detail, advice=problem.advice)
    try:
        firmware.check_pair(config.qemu.firmware, descriptors)
        if config.qemu.boots_disk:
            check_image(config.qemu.disk)
    except LaunchError as error:
        # No error: the missing file can be added while the supervisor runs. Until then each run
        # fails with this error.
        warnings.append(str(error))
    warnings += _about_tee(config, decided)
    dangers = (network.danger(config.qemu.net), users.danger(config.qemu))
    warnings += [str(danger) for danger in dangers if danger]
    if config.auth is Auth.OFF:
        warnings.append(
            "MANAGER_AUTH=off: every user and every program on this host can start, read and end"
            " VMs; set MANAGER_AUTH to on, see docs/how-to/say-who-may.md"
        )
    for warning in warnings:
        log.warning(warning)
    return host


def _about_tee(config: Config, decided: Accel) -> list[str]:
    """:raises HostError: if the technology does not know the policy, or a key is no key"""
    if key := config.qemu.tee.signing_key:
        corim.load_key(key)
    # No error, as with the disk: each run that needs the file fails with this until it is there.
    found = [str(error) for error in measured.problems(config.qemu.tee)]
    words = config.qemu.tee.policy
    problem = policy.conflict(words, decided.tee)
    if problem and decided.tee:
        raise HostError(problem, advice="change MANAGER_TEE_POLICY")
    if problem:
        found.append(f"no guest can have MANAGER_TEE_POLICY={words}: {problem}")
    if decided.tee is None:
        return found
    number = policy.encode(decided.tee, words)
    found += [
        f"MANAGER_TEE_POLICY={words}: {opening}" for opening in policy.openings(decided.tee, number)
    ]
    if config.start.pool_size and binding.binds(decided.tee):
        found.append(
            f"MANAGER_POOL_SIZE has no effect: each {decided.tee.label} guest is started for one"
            " computation"
        )
    return found

"""Runs the agent: ``python -m supervisor.agent.reference``; in a guest, /usr/lib/guest/agent."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Sequence

    from .access import Access
    from .call import Method, StreamMethod
    from .clone import Clones
    from .guest import Guest
    from .service import Agent
    from .tls import Encrypted


def make_parser() -> argparse.ArgumentParser:
    """Of the agent's arguments."""
    env = os.environ.get
    parser = argparse.ArgumentParser(description="The reference agent.", allow_abbrev=False)
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on")
    parser.add_argument("--grpc-port", type=int, default=env("AGENT_GRPC_PORT", "7002"))
    parser.add_argument("--http-port", type=int, default=env("AGENT_HTTP_PORT", "9031"))
    parser.add_argument("--algorithm-timeout-s", type=float, default=3600.0)
    parser.add_argument(
        "--algorithm-memory-mib",
        type=int,
        default=0,
        help="0: in a guest, what is available but for the agent's part; else no limit",
    )
    parser.add_argument(
        "--in-guest",
        action="store_true",
        help="the whole machine is the agent's: confine algorithms, serve CloneService, SetClock",
    )
    parser.add_argument(
        "--trust-algorithms",
        action="store_true",
        help="in a guest: run algorithms as root beside the agent, with devices and network",
    )
    parser.add_argument(
        "--tls",
        action="store_true",
        help="speak TLS alone, with a key that is made at the start; reports are bound to it",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until SIGTERM; the exit status. *arguments* are by default the command line's."""
    options = make_parser().parse_args(arguments)

    from .guest import Guest
    from .rpc import Server

    # Python runs a signal's handler in the main thread, when that next runs Python code. A signal
    # that another thread takes, or that comes just before the main thread waits, does not wake it.
    stop, stopped = os.pipe()
    os.set_blocking(stopped, False)
    signal.set_wakeup_fd(stopped)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    guest = Guest() if options.in_guest else None
    try:
        access = _access(guest)
    except OSError as error:
        why = f"cannot find out who may call: {error}; load the kernel's module qemu_fw_cfg"
        print(f"agent: {why}", file=sys.stderr)
        return 1
    agent, clones, methods = _served(options, guest, access)
    try:
        of_grpc, of_http = _encrypted(agent) if options.tls else (None, None)
        server = Server(methods, access, options.host, options.grpc_port, of_grpc)
        # Imported here because it takes long, and gRPC answers meanwhile.
        from .http import serve_http

        http = serve_http(agent, access, options.host, options.http_port, of_http)
    except OSError as error:
        print(f"agent: cannot listen: {error}", file=sys.stderr)
        return 1
    ports = {"grpc_port": server.port, "http_port": http.server_address[1]}
    print(json.dumps(ports), flush=True)
    if clones:
        clones.serve_line = server.serve_line
        clones.agent_is_up.set()
    os.read(stop, 1)
    http.stop()
    server.stop()  # cancels calls under way, which kills their algorithms
    agent.close()
    return 0


def _encrypted(
    agent: Agent,
) -> tuple[Callable[[socket.socket], Encrypted], ssl.SSLContext]:
    """What gRPC and HTTP are served with. OSError: no key can be made."""
    from . import tls

    identity = tls.make_identity()
    agent.bind_reports_to(lambda nonce: tls.binding(identity.public_key, nonce))
    h2 = tls.context(identity, ["h2"])
    return lambda client: tls.Encrypted(client, h2), tls.context(identity, ["http/1.1"])


def _access(guest: Guest | None) -> Access:
    """Anybody may call an agent that is not in a guest: no host is there to say who."""
    from .access import Access

    return Access.of_guest() if guest else Access()


def _served(
    options: argparse.Namespace, guest: Guest | None, access: Access
) -> tuple[Agent, Clones | None, dict[str, Method | StreamMethod]]:
    """The agent, its clones if it may have some, and what is served: methods by their paths."""
    from . import clone, compute, guest_service, service

    defaults = options.algorithm_timeout_s, options.algorithm_memory_mib
    clones = None
    if guest:
        from .confinement import Confinement

        guest.protect_agent()
        isolation = None if options.trust_algorithms else Confinement()
        agent = service.Agent(*defaults, isolation, guest.settle)
        # All copies of a guest would have one key.
        clones = None if options.tls else clone.Clones(agent, guest, access)
    else:
        agent = service.Agent(*defaults)
    methods = {
        **service.methods(agent),
        **compute.methods(agent),
        **guest_service.methods(agent, guest),
        **(clone.methods(clones) if clones else {}),
    }
    return agent, clones, methods


if __name__ == "__main__":
    sys.exit(main())

"""What a guest may try to reach: an algorithm that knocks, and listeners that answer."""

from __future__ import annotations

import socket
import socketserver
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Knocks at each address and port of its data set, all at once. The result is a list of those that
#: sent something back, as a resolver and an agent behind a forward do as well.
KNOCK = rb"""
import json, socket, subprocess, sys, threading

with open("/proc/sys/net/ipv6/conf/eth0/accept_dad", "w") as setting:
    setting.write("0")
subprocess.run(["ip", "-6", "address", "add", "fec0::15/64", "dev", "eth0"])
subprocess.run(["ip", "-6", "route", "add", "default", "via", "fe80::2", "dev", "eth0"])
REQUEST = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
QUESTION = b"\x12\x34\1\0\0\1\0\0\0\0\0\0\7example\3com\0\0\1\0\1"
reached = []

def knock(kind, address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, getattr(socket, kind)) as connection:
        connection.settimeout(20)
        try:
            connection.connect((address, port))
            if port != 53:
                connection.send(REQUEST)
            elif kind == "SOCK_DGRAM":
                connection.send(QUESTION)
            else:
                connection.send(len(QUESTION).to_bytes(2, "big") + QUESTION)
            if connection.recv(100):
                reached.append([kind, address, port])
        except OSError:
            pass

threads = [threading.Thread(target=knock, args=one) for one in json.loads(sys.argv[1])]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
with socket.socket(socket.AF_UNIX) as result:
    result.connect(sys.argv[2])
    result.sendall(json.dumps(reached).encode())
"""

#: Kind of socket, address and port.
Door = tuple[str, str, int]


class _Stream(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(b"here")


class _Datagram(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request[1].sendto(b"here", self.client_address)


@contextmanager
def listening(kind: str, address: str, port: int = 0) -> Iterator[int]:
    """A port of the host that answers whoever reaches it. 0: the system chooses."""
    stream = kind == "SOCK_STREAM"
    base = socketserver.TCPServer if stream else socketserver.UDPServer
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server_class = type("Server", (base,), {"address_family": family})
    with server_class((address, port), _Stream if stream else _Datagram) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:  # else the thread would go on, and the process with it
            server.shutdown()
            thread.join()


#: How slirp's guests see the host's loopback.
LOOPBACK = {"127.0.0.1": "10.0.2.2", "::1": "fec0::2"}

"""Speaks with libvirt for the benchmark, under the Python that has libvirt's module: the system's.

    /usr/bin/python3 libvirt_calls.py URI

Reads a JSON object a line, ``{"call": name, ...}``, and answers each with one. Moments are on
CLOCK_MONOTONIC, which all processes share. It imports nothing of this project.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import libvirt
import libvirt_qemu

_STATUS = json.dumps({"execute": "query-status"})


class Calls:
    """What may be asked."""

    def __init__(self, uri: str) -> None:
        self.connection = libvirt.open(uri)
        self.domain: Any = None

    def prepare(self, emulator: str, machine: str) -> dict[str, Any]:
        """Have libvirt find out what this QEMU can do, which it does once and keeps."""
        self.connection.getDomainCapabilities(emulator, "x86_64", machine, "qemu")
        number = self.connection.getLibVersion()
        return {"version": f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"}

    def start(self, xml: str) -> dict[str, Any]:
        begun = time.perf_counter()
        self.domain = self.connection.defineXML(xml)
        defined = time.perf_counter()
        self.domain.create()
        return {"begun_at": begun, "defined_at": defined, "created_at": time.perf_counter()}

    def rate(self, seconds: float, callers: int) -> dict[str, Any]:
        """Questions a second, of each caller, a thread, one after another."""
        started = time.perf_counter()

        def caller(_: int) -> int:
            asked = 0
            while time.perf_counter() - started < seconds:
                libvirt_qemu.qemuMonitorCommand(self.domain, _STATUS, 0)
                asked += 1
            return asked

        with ThreadPoolExecutor(callers) as pool:
            asked = sum(pool.map(caller, range(callers)))
        return {"rate": asked / (time.perf_counter() - started)}

    def pci(self) -> dict[str, Any]:
        text = libvirt_qemu.qemuMonitorCommand(self.domain, '{"execute": "query-pci"}', 0)
        return {"pci": json.loads(text)["return"]}

    def end(self) -> dict[str, Any]:
        self.domain.destroy()
        self.domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)
        return {}


def main() -> None:
    calls = Calls(sys.argv[1])
    for line in sys.stdin:
        wanted = json.loads(line)
        try:
            answer = getattr(calls, wanted.pop("call"))(**wanted)
        except libvirt.libvirtError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

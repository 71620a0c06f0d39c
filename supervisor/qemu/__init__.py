"""One QEMU process and what is said to it.

`cmdline` is pure: configuration to arguments. `process` starts, finds and ends the process. `qmp`
is one QMP connection, `connection` keeps one open for as long as the process lives. A QEMU expert
reviews this room.
"""

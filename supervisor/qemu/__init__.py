"""One QEMU process: its command line, its process and its QMP connection.

`cmdline` turns a configuration into arguments and is pure. `process` starts, finds and ends the
process. `qmp` is one QMP connection; `connection` keeps a connection open while the process lives.
`accel`, `firmware`, `ports` and `host` find out what this host offers. This room is for the review
of a QEMU expert.
"""

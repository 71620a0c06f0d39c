"""One QEMU process: its command line, its process and its QMP connection.

`cmdline` turns a configuration into arguments and is pure. `process` starts and finds the process
and signals it; when, ``vm.shutdown`` decides. `qmp` is one QMP connection; `connection` keeps a
connection open while the process lives. `confine`, `users` and `groups` say what QEMU may
have of the host. `confidential` has the arguments of guests that the host cannot read, `measured`
chooses what they start from. `accel`, `firmware`, `ports` and `host` find out what this host
offers. A QEMU expert can review this room alone.
"""

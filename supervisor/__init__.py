"""qmp-supervisor: QEMU virtual machines, started, heard and ended over QMP."""

"""One VM, from the decision to start it to the last line of its record.

`task` is the VM's task and owns all that happens to it; `vm` is what others may read and ask for.
`session` is one QEMU process of a VM: a VM that is booted again has another one. These modules
share one subject and one nursery. Used by ``runs`` and, to read, by ``api``.
"""

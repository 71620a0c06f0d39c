"""One VM, from the decision to start it to the last line of its record.

`task` owns all that happens to a VM; `vm` is what others may read, wait for and ask for. `launch`
starts QEMU. Each boot is a `session`: one QEMU process. Beside it run `shutdown`, `relay` (the
agent) and `ttl`; `qmp_events` takes QEMU's events. `decisions` is pure: what follows a boot, which
step of a shutdown comes next. `restart` waits before another boot; `control` pauses, resumes and
resets. Used by ``runs`` and ``api``.
"""

"""Who may start a VM, and which VM a run gets.

`service` is what the API asks: run, submit, end, delete, stop. `vms` is all VMs by id and starts
new ones for runs, for the pool and for templates. Beside them: admission, idempotency keys, the
pool, the template builder, retention, metrics. Used by ``api`` and `app`.
"""

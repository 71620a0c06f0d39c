"""Who may start a VM, and which VM a run gets.

`service` answers the API: run, submit, end, events. `vms` has all VMs by id; it starts, deletes,
ends and leaves them. `admission` has the limits and the queue, `idempotency` the keys, `pool` the
VMs kept ready, `template_builder` the templates, `retention` the ended VMs, `metrics` the counters.
`nursery` is the VMs' nursery, which outlives the servers. Used by ``api`` and `app`.
"""

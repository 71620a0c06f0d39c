"""What outlives a supervisor: records, events and the files of every VM.

`record` declares the record and all its words: event kinds, phases, causes. `status` has the states
and their transitions. Both are pure. `store` writes files so that a crash leaves the old file or
the new file. `journal` numbers events, has them written, and then publishes them through
`broadcast`. `vm_dir` names a VM's files; `recovery` reads what an earlier supervisor left.
"""

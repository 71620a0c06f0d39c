"""What outlives a supervisor: records, events and the files of every VM.

`record` and `status` are pure. `store` writes files so that a crash leaves the old file or the new
file. `journal` numbers events, writes them, and then publishes them. `recovery` reads what an
earlier supervisor left. The whole argument for crash safety is in this room.
"""

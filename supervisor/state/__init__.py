"""What outlives a supervisor: records, events and the files of every VM.

`record` and `status` are pure. `store` writes files so that a crash leaves the old or the new one;
`journal` orders events, writes them, and then publishes them. `recovery` reads what an earlier
supervisor left. Crash safety is one argument and is read here.
"""

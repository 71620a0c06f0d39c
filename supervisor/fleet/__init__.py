"""Many hosts: which there are, which of them has a run, and how the others reach it.

`engine` says what is asked of a broker, and `nats` is NATS JetStream; no other module knows which
broker there is. `facts` and `ledger` decide and are pure. The API uses this room; it uses `runs`.
"""

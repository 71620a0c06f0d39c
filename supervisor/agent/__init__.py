"""Both ends of the agent's protocol.

`client` is the supervisor's end, and `dialled` that of agents that dial it. ``reference`` runs
inside the guest and is copied into the image: it imports only Python's library and h2.
"""

"""The reference agent: takes a computation, runs an algorithm over a dataset, hands out the result.

It needs nothing but Python 3.11 and h2, because it also runs inside the guest, alone. gRPC
(``agent.AgentService``) listens on 7002, HTTP on 9031. Once both serve, one line
``{"grpc_port": N, "http_port": N}`` goes to stdout; port 0 lets the kernel choose. SIGTERM ends
the agent, and any algorithm it runs, with status 0.

Whatever cannot be answered is a :class:`~.refusal.Refusal`: a status code and a sentence for the
caller.

In the guest (``--in-guest``) it serves ``clone.CloneService`` too, so that the guest may be copied
while it runs. Copies have all in common that was ever drawn at random: the kernel's entropy, names,
what this process has. Between Prepare and Renew the agent therefore refuses every call but that for
its health. It holds no keys; every algorithm is a process of its own, which seeds itself anew.
"""

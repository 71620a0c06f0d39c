"""The reference agent: takes a computation, runs an algorithm over a dataset, hands out the result.

It needs nothing but Python 3.11 and h2, because it also runs inside the guest, alone. gRPC
(``agent.AgentService``, ``compute.ComputeService``, ``guest.GuestService``) listens on 7002, HTTP
on 9031. Once both serve, one line ``{"grpc_port": N, "http_port": N}`` goes to stdout; port 0 lets
the kernel choose. SIGTERM ends the agent, and any algorithm it runs, with status 0.

A request that cannot be answered raises :class:`~.refusal.Refusal`: a status code and a sentence
for the caller.

In the guest (``--in-guest``) it serves ``clone.CloneService`` too, so that the guest may be copied
while it runs. All copies share what was drawn at random before: the kernel's entropy, names, the
random state of this process. So the agent refuses every call between Prepare and Renew, except
those of clone.CloneService and for its health and status. The agent holds no keys, and each
algorithm runs in a new process with a new seed. In the guest algorithms are confined too.
"""

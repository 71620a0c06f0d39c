"""The reference agent: takes a computation, runs an algorithm over a dataset, hands out the result.

It needs nothing but Python 3.11 and grpcio, because it also runs inside the guest, alone. gRPC
(``agent.AgentService``) listens on 7002, HTTP on 9031. Once both serve, one line
``{"grpc_port": N, "http_port": N}`` goes to stdout; port 0 lets the kernel choose. SIGTERM ends
the agent, and any algorithm it runs, with status 0.

Whatever cannot be answered is a :class:`~.refusal.Refusal`: a status code and a sentence for the
caller.

The agent is safe to clone while it runs: it holds no keys, and nothing it draws at random (a
directory's name) has to differ between guests. Every algorithm is a process of its own, which
seeds itself anew.
"""

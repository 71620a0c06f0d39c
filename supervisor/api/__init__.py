"""How callers reach the supervisor: one set of requests over two wires.

``http`` and ``grpc`` differ in words only. `requests` declares what a caller may ask for, and which
error a malformed request gets; `sockets` opens the ports and checks the certificates. Used by
`app`. It calls ``runs`` and ``vm.control``, and reads VMs; no room below knows of it.
"""

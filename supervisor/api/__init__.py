"""How callers reach the supervisor: one set of requests over two wires.

``http`` and ``grpc`` differ in words only. What a caller may ask for, and which errors a malformed
request gets, is in `requests`; `sockets` opens the ports and reads the certificates. Used by `app`.
It asks ``runs`` and reads ``vm``; nothing below knows of it.
"""

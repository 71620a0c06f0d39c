"""Who calls: from a socket's peer, a token or a certificate to a `Caller`. The same for both wires.

`door` decides; `tokens` and `certificates` know the files, and `files` reads them again when they
change. What a caller may do is decided elsewhere, by `supervisor.caller`.
"""

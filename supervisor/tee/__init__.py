"""Confidential guests: whether this host offers AMD SEV, and whether a report of a guest is true.

``qemu`` and `doctor` use the facts of the host, the command ``verify`` the rest. It imports
`supervisor.errors` alone.
"""

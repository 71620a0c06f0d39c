"""Confidential guests: what this host can start, and whether a report of a guest is true.

``qemu``, ``api`` and `doctor` use the facts of the host, the command ``verify`` the rest. It
imports `supervisor.errors` alone.
"""

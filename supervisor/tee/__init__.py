"""Confidential guests: whether this host offers AMD SEV.

This room only reads facts of the host. ``qemu`` and `doctor` use it. It imports no other room.
"""

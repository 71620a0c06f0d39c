"""Confidential guests: what this host offers of AMD SEV.

It reads the host and decides nothing else. Used by ``qemu`` and `doctor`. Imports nothing of ours.
"""

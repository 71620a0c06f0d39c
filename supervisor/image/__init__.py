"""Builds the guest image on the host, from Debian packages; needs neither root nor a boot.

`image` is the order of the steps, `rootfs` the guest's file system, `modules` its kernel modules,
`disk` the UEFI disk around it. ``init`` is the guest's first program. Used by the command
``qmp-supervisor image build``; it imports ``agent.reference`` only to copy it.
"""

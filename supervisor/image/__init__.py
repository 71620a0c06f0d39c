"""Builds the guest image on the host, from Debian packages; needs neither root nor a boot.

`image` has the steps in their order, `rootfs` makes the guest's file system, `modules` adds its
kernel modules, `disk` makes the UEFI disk. ``init`` is the guest's first program. The command
``qmp-supervisor image build`` uses this room, which copies ``agent.reference`` into the image.
"""

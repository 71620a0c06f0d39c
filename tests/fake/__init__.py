"""The real service, with a small program in the place of QEMU."""

"""The real thing: ``qmp-supervisor serve``, real QEMU, the real guest in img/."""

"""In the place of libvirt, of which an offline check needs nothing."""

"""Chaos for a fleet: three hosts in namespaces of their own, and the claim about all of them."""

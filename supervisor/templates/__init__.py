"""Templates: VMs that were frozen once their agent was ready, to start others from.

`template` is one template on disk and what it is made of; `registry` knows which there are, what
state each is in, and which VMs depend on it. Used by ``vm`` to start clones and by ``runs`` to
build templates.
"""

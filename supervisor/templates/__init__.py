"""Templates: VMs that were frozen when their agent was ready. Other VMs start from them as clones.

`template` is one template on disk, and its fingerprint. `registry` knows all templates, the state
of each, and the VMs that depend on each. ``vm`` starts clones from templates, and ``runs`` builds
templates.
"""

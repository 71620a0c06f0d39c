"""The guest: a reference agent, and a disk image built from the distribution's packages alone."""

"""qmp-supervisor: QEMU virtual machines, started, watched and ended over QMP.

Start with `app`: what is inside what is the order in which it stops. The rooms, from top to
bottom, are ``cli``, ``api``, ``runs``, ``vm``, ``templates``, ``image`` and ``agent``, ``state``,
``qemu``, ``tee`` and ``config``. A room imports only rooms below it.
"""

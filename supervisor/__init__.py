"""qmp-supervisor: QEMU virtual machines, started, watched and ended over QMP.

Start reading with `app`, which nests the parts: they stop in the reverse order. The rooms, from top
to bottom, are ``cli``, ``api``, ``runs``, ``vm``, ``templates``, ``image`` and ``agent``,
``state``, ``qemu``, ``tee`` and ``config``. A room imports only rooms below it.
"""

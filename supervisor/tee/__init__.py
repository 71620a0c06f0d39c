"""Confidential guests: what this host can start, what it measures, whether a report is true.

Of a host: `reading` reads `facts`, `judge` judges them, `causes` explains a failed launch. Of a
launch: `policy`, `binding`, `measure`, `expected`. Of evidence: `sev`, ``snp`` and ``tdx`` verify
it, with `certificate`, `ecdsa` and `checks`. ``qemu``, ``vm`` and `doctor` use the first two, the
command ``verify`` the last. It imports ``config`` and `supervisor.errors` alone.
"""

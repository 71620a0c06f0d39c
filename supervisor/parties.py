"""Who brings what into a VM, and who gets its result. Pure.

Without parties all of that is for the VM's owner. With them it is for those who are named, and for
nobody else: the owner has started the VM, and may end it.
"""

from __future__ import annotations

import attrs

#: For who gets the result, and has the algorithm run.
RESULT = "result"


@attrs.frozen(kw_only=True)
class Parties:
    """Callers, by their names.

    :param algorithm: who brings it
    :param data: who brings which data set, in the order of their numbers
    :param result: who gets it, and what the algorithm printed
    :param algorithm_sha256: what all have agreed on, in hexadecimal digits; empty: whatever is sent
    """

    algorithm: str
    data: tuple[str, ...]
    result: tuple[str, ...]
    algorithm_sha256: str = ""

    @property
    def names(self) -> frozenset[str]:
        return frozenset((self.algorithm, *self.data, *self.result))

    @property
    def parts(self) -> tuple[str, ...]:
        """What must be there before the algorithm can run."""
        return ("algorithm", *(f"data/{number}" for number in range(len(self.data))))

    def of(self, part: str) -> tuple[str, ...]:
        """Who may send or get this part; nobody if there is no such part.

        :param part: ``algorithm``, ``data/`` and a number, or `RESULT`
        """
        if part == RESULT:
            return self.result
        brings = zip(self.parts, (self.algorithm, *self.data), strict=True)
        return tuple(who for one, who in brings if one == part)

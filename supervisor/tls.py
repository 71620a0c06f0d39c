"""What all TLS of ours has in common."""

from __future__ import annotations

import ssl


def as_tolerant_as_others(context: ssl.SSLContext) -> ssl.SSLContext:
    """The context without the strictness that Python's default contexts have from 3.13 on.

    It refuses each certificate of an authority without an extension that RFC 5280 demands, such as
    `openssl req -x509` makes. An upgrade of Python would lock clients out of one of our servers,
    and not of the other: gRPC has no such rule.
    """
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context

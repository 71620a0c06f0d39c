"""Signatures by ECDSA as reports and quotes have them: two numbers beside signed bytes. Pure."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

#: The curves in use, each with the hash that goes with it.
P256: tuple[ec.EllipticCurve, hashes.HashAlgorithm] = (ec.SECP256R1(), hashes.SHA256())
P384: tuple[ec.EllipticCurve, hashes.HashAlgorithm] = (ec.SECP384R1(), hashes.SHA384())


def is_signed(
    signed: bytes,
    signature: tuple[int, int] | bytes,
    key: bytes,
    scheme: tuple[ec.EllipticCurve, hashes.HashAlgorithm],
) -> bool:
    """Whether a key of this curve has signed these bytes.

    :param signature: r and s, or both in a row, big endian and of equal length
    :param key: SubjectPublicKeyInfo in DER, or the point's x and y in a row
    """
    curve, algorithm = scheme
    if isinstance(signature, bytes):
        half = len(signature) // 2
        r, s = signature[:half], signature[half:]
        signature = int.from_bytes(r, "big"), int.from_bytes(s, "big")
    try:
        if len(key) == 2 * ((curve.key_size + 7) // 8):
            loaded = ec.EllipticCurvePublicKey.from_encoded_point(curve, b"\4" + key)
        else:
            found = load_der_public_key(key)
            if not isinstance(found, ec.EllipticCurvePublicKey) or found.curve.name != curve.name:
                return False
            loaded = found
        loaded.verify(encode_dss_signature(*signature), signed, ec.ECDSA(algorithm))
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True

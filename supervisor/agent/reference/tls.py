"""TLS of the agent's own: a key that is born in the guest, and sockets that never block.

The key's digest goes into the processor's reports: `binding`. So a caller who has a report knows
that nobody but the guest is at the other end.

Python can serve TLS and cannot make a key. OpenSSL's library is there for the former, so it is
asked by ctypes for the latter; its program would be another package in each guest.

Source: OpenSSL 3, man pages EVP_PKEY_Q_keygen(3), X509_sign(3), PEM_write_bio_PrivateKey(3).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import ssl
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Sequence

LIBRARY = "libcrypto.so.3"
CURVE = b"P-256"
NAME = b"agent"
VALID_S = 10 * 365 * 24 * 3600
# A guest's clock may be behind.
EARLIER_S = -24 * 3600
# What a report says is told apart from what else anybody might have signed.
CONTEXT = b"qmp-supervisor agent TLS key v1\0"

_MBSTRING_ASC, _VERSION_3 = 0x1001, 2
_P, _INT, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_long


class Identity(NamedTuple):
    """A certificate and its key, in PEM, and the public key: SubjectPublicKeyInfo, in DER."""

    certificate: bytes
    key: bytes
    public_key: bytes


def binding(public_key: bytes, nonce: bytes) -> bytes:
    """What a report says of a key and a caller's nonce, which has 64 bytes, as the result has."""
    return hashlib.sha512(CONTEXT + public_key + nonce).digest()


def make_identity() -> Identity:
    """A new key, and a certificate that it signs itself. OSError: OpenSSL cannot make them."""
    lib = ctypes.CDLL(LIBRARY)
    key = _made(lib.EVP_PKEY_Q_keygen, _P, None, None, b"EC", CURVE)
    certificate = _made(lib.X509_new, _P)
    try:
        name = _made(lib.X509_get_subject_name, _P, _P(certificate))
        entry = (_P(name), b"CN", _MBSTRING_ASC, NAME, -1, -1, 0)
        _made(lib.X509_NAME_add_entry_by_txt, _INT, *entry)
        serial = _made(lib.X509_get_serialNumber, _P, _P(certificate))
        _made(lib.ASN1_INTEGER_set, _INT, _P(serial), _LONG(int.from_bytes(os.urandom(7), "big")))
        _made(lib.X509_set_version, _INT, _P(certificate), _LONG(_VERSION_3))
        _made(lib.X509_set_issuer_name, _INT, _P(certificate), _P(name))
        for moment, when_s in (("notBefore", EARLIER_S), ("notAfter", VALID_S)):
            field = _made(getattr(lib, f"X509_getm_{moment}"), _P, _P(certificate))
            _made(lib.X509_gmtime_adj, _P, _P(field), _LONG(when_s))
        _made(lib.X509_set_pubkey, _INT, _P(certificate), _P(key))
        _made(lib.X509_sign, _INT, _P(certificate), _P(key), _P(_made(lib.EVP_sha256, _P)))
        unencrypted = (None, None, 0, None, None)
        return Identity(
            _written(lib, lib.PEM_write_bio_X509, _P(certificate)),
            _written(lib, lib.PEM_write_bio_PrivateKey, _P(key), *unencrypted),
            _written(lib, lib.i2d_PUBKEY_bio, _P(key)),
        )
    finally:
        lib.X509_free(_P(certificate))
        lib.EVP_PKEY_free(_P(key))


def _written(lib: ctypes.CDLL, write: ctypes._NamedFuncPointer, *what: object) -> bytes:
    bio = _made(lib.BIO_new, _P, _P(_made(lib.BIO_s_mem, _P)))
    try:
        _made(write, _INT, _P(bio), *what)
        content = ctypes.create_string_buffer(1 << 14)
        length = _made(lib.BIO_read, _INT, _P(bio), content, len(content))
        return content.raw[:length]
    finally:
        lib.BIO_free(_P(bio))


def _made(function: ctypes._NamedFuncPointer, kind: type, *arguments: object) -> int:
    """What *function* returns, which is not 0 and not negative."""
    function.restype = kind
    found = function(*arguments)
    if not found or found < 0:
        raise OSError(f"{LIBRARY}: {function.__name__} failed")
    return int(found)


def context(identity: Identity, protocols: Sequence[str]) -> ssl.SSLContext:
    """A server's. *protocols* are those that a client may choose from by ALPN."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_alpn_protocols(list(protocols))
    # ssl reads files alone.
    with tempfile.NamedTemporaryFile() as file:  # 0600
        file.write(identity.key + identity.certificate)
        file.flush()
        made.load_cert_chain(file.name)
    return made


class Encrypted:
    """The server's end of a connection. It behaves as a socket that does not block."""

    def __init__(self, plain: socket.socket, context: ssl.SSLContext) -> None:
        self._socket = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        self.fileno = self._socket.fileno
        self.close = self._socket.close

    def do_handshake(self) -> None:
        """BlockingIOError: the client has to say more. OSError: it fails."""
        with _as_a_socket():
            self._socket.do_handshake()

    def recv(self, size: int) -> bytes:
        with _as_a_socket():
            data = self._socket.recv(size)
        # What is decrypted already makes no descriptor readable.
        while waiting := self._socket.pending():
            data += self._socket.recv(waiting)
        return data

    def send(self, data: bytes) -> int:
        with _as_a_socket():
            return self._socket.send(data)


@contextmanager
def _as_a_socket() -> Iterator[None]:
    """Where TLS must wait for its peer, say so as a socket does."""
    try:
        yield
    except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
        raise BlockingIOError from None

"""DTLS 1.2 as the server of a WebRTC peer (RFC 5764, RFC 8842): datagrams in, datagrams out, keys at the end.

OpenSSL works on memory here, never on a socket. Under pressure a handshake begins with a cookie (RFC 6347, section
4.2.1): nothing costly is computed before the client has answered from where it says it is.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL, crypto

from whispr.webrtc.srtp import PROFILES, Keys

DATAGRAM_BYTES_MAX: Final = 1200
"""Passes every network, with room for the headers of tunnels."""
CERTIFICATE_DAYS: Final = 365
"""Of a certificate that is made anew with each start; nobody looks at its dates but OpenSSL itself."""
_CIPHERS: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE-ECDSA-AES128-SHA"
_HASHES: Final[Mapping[str, str]] = {"sha-256": "sha256", "sha-384": "sha384", "sha-512": "sha512"}
"""Names of RFC 8122, and Python's."""
_RECORD_HEADER_BYTES: Final = 13
_COOKIE_BYTES: Final = 32


class DtlsError(Exception):
    """The handshake failed, or the other end closed; the message says how."""


def fingerprint(der: bytes, algorithm: str = "sha-256") -> str:
    """Return the fingerprint of a certificate in DER as descriptions write it (RFC 8122, section 5)."""
    return hashlib.new(_HASHES[algorithm], der).digest().hex(":").upper()


class Identity:
    """A self-signed certificate, and the contexts of OpenSSL that show it."""

    def __init__(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "whispr")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=CERTIFICATE_DAYS))
            .sign(key, hashes.SHA256())
        )
        self.fingerprint = fingerprint(certificate.public_bytes(serialization.Encoding.DER))
        self._secret = secrets.token_bytes(32)
        self._contexts = [self._context(key, certificate, cookies) for cookies in (False, True)]

    def _context(
        self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, cookies: bool
    ) -> SSL.Context:
        context = SSL.Context(SSL.DTLS_SERVER_METHOD)
        context.use_privatekey(key)
        context.use_certificate(certificate)
        # Certificates of peers are self-signed: what counts is that the fingerprint is the one they announced.
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *_: True)
        context.set_cipher_list(_CIPHERS)
        context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_QUERY_MTU | (SSL.OP_NO_RENEGOTIATION or 0))
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_tlsext_use_srtp(b":".join(PROFILES))
        if cookies:
            context.set_options(SSL.OP_COOKIE_EXCHANGE or 0)
            context.set_cookie_generate_callback(self._cookie)
            context.set_cookie_verify_callback(
                lambda connection, cookie: hmac.compare_digest(cookie, self._cookie(connection))
            )
        return context

    def _cookie(self, connection: SSL.Connection) -> bytes:
        where: bytes = connection.get_app_data()
        return hmac.digest(self._secret, where, "sha256")[:_COOKIE_BYTES]

    def connection(self, address: Sequence[object], *, cookie: bool) -> SSL.Connection:
        """Make a server's connection in memory with a client at an address."""
        made = SSL.Connection(self._contexts[cookie])
        made.set_app_data(repr(tuple(address)).encode())
        made.set_accept_state()
        made.set_ciphertext_mtu(DATAGRAM_BYTES_MAX)
        return made


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a datagram: datagrams to send, and the keys once the handshake is through."""

    send: Sequence[bytes]
    keys: Keys | None = None


class Dtls:
    """One peer's association."""

    def __init__(
        self,
        identity: Identity,
        address: Sequence[object],
        expected: Mapping[str, Sequence[str]],
        *,
        cookie: bool = False,
    ) -> None:
        """`expected`: fingerprints by hash function, as the peer's description gave them."""
        self._connection = identity.connection(address, cookie=cookie)
        self._expected = expected
        self._established = False

    def receive(self, datagram: bytes) -> Outcome:
        """Take a datagram in. Raises DtlsError when the handshake fails, or the peer has closed."""
        self._connection.bio_write(datagram)
        if self._established:
            return self._after()
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return Outcome(self._pending())
        except SSL.Error as error:
            raise DtlsError(f"the handshake failed: {_told(error)}") from error
        keys = self._finish()
        self._established = True
        return Outcome(self._pending(), keys)

    def _after(self) -> Outcome:
        """Read what comes after the handshake: the client's last flight again, or its farewell."""
        try:
            while True:
                self._connection.recv(DATAGRAM_BYTES_MAX)  # data channels are not offered: nothing to keep
        except SSL.WantReadError:
            return Outcome(self._pending())
        except SSL.ZeroReturnError:
            raise DtlsError("the peer closed") from None
        except SSL.Error as error:
            raise DtlsError(f"the association failed: {_told(error)}") from error

    def timed_out(self) -> Sequence[bytes]:
        """Return what to send again, if it is time (RFC 6347, section 4.2.4). Raises DtlsError after too often."""
        if self._established:
            return ()
        try:
            self._connection.DTLSv1_handle_timeout()
        except SSL.Error as error:
            raise DtlsError("the handshake was not answered") from error
        return self._pending()

    def close(self) -> Sequence[bytes]:
        """Say farewell, if there is somebody to say it to."""
        if not self._established:
            return ()
        try:
            self._connection.shutdown()
        except SSL.Error:
            return ()
        return self._pending()

    def _finish(self) -> Keys:
        certificate = self._connection.get_peer_certificate()
        # Nothing of it is read: what OpenSSL takes for a certificate another parser may refuse.
        der = b"" if certificate is None else crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)
        if not any(fingerprint(der, algorithm) in self._expected.get(algorithm, ()) for algorithm in _HASHES):
            raise DtlsError("the certificate is not the announced one")
        profile = self._connection.get_selected_srtp_profile()
        if profile not in PROFILES:
            raise DtlsError("no SRTP profile in common")
        size = Keys.size(profile)
        material = self._connection.export_keying_material(b"EXTRACTOR-dtls_srtp", size)
        return Keys.of_server(profile, material)

    def _pending(self) -> list[bytes]:
        written = b""
        try:
            while True:
                written += self._connection.bio_read(65536)
        except SSL.WantReadError:
            return datagrams(written)


def datagrams(records: bytes) -> list[bytes]:
    """Pack whole records into as few datagrams as they fit (RFC 6347, section 4.1.1)."""
    packed: list[bytes] = []
    at = 0
    while at < len(records):
        length = int.from_bytes(records[at + 11 : at + _RECORD_HEADER_BYTES], "big")
        record = records[at : at + _RECORD_HEADER_BYTES + length]
        if packed and len(packed[-1]) + len(record) <= DATAGRAM_BYTES_MAX:
            packed[-1] += record
        else:
            packed.append(record)
        at += len(record)
    return packed


def _told(error: SSL.Error) -> str:
    """OpenSSL's reasons, in words."""
    queue = error.args[0] if error.args else ()
    reasons = [entry[2] for entry in queue if isinstance(entry, tuple) and len(entry) == 3]
    return ", ".join(reasons) or type(error).__name__

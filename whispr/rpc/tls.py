"""TLS and mutual TLS, from files that may be replaced while they are in use.

    server_tls = TlsFiles(certificate="server.pem", key="server.key", authorities="clients-ca.pem")
    port = await nursery.start(partial(server.serve_tcp, "0.0.0.0", 0, tls=server_tls))
    async with open_channel("chat.internal:50053", tls=TlsFiles(authorities="ca.pem")) as channel: ...

Every handshake looks whether the files have changed and loads them anew if so; connections that are already
there keep what they began with. Files caught half-written leave the old ones in use, with a warning.

ALPN must agree on "h2" (RFC 9113 section 3.2): a peer that does not offer it is refused.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
import trio

ALPN = "h2"

_log = structlog.get_logger("whispr.rpc")

_Path = str | os.PathLike[str]
_Stamp = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who the other side is, by a certificate that has been verified."""

    subject: str
    """Such as "CN=auth,O=Whispr"; most specific first."""
    common_name: str
    dns_names: tuple[str, ...]
    uris: tuple[str, ...]
    """For example SPIFFE ids."""
    ip_addresses: tuple[str, ...]


class TlsFiles:
    """One side's certificate, and whom it trusts. PEM files."""

    def __init__(
        self,
        certificate: _Path | None = None,
        key: _Path | None = None,
        authorities: _Path | None = None,
        *,
        server_name: str | None = None,
        alpn: str = ALPN,
    ) -> None:
        """`certificate` is a chain with its `key`: a server must have one, a client if it is asked for one.

        `authorities`: on a server, clients must show a certificate signed by one of these; on a client the
        server's must be, instead of by one of the system's. `server_name`: what the server's certificate is
        checked against, if not the host dialled. `alpn`: the protocol spoken inside. Raises ValueError for a
        certificate without a key, OSError or ssl.SSLError for files that cannot be read.
        """
        if (certificate is None) != (key is None):
            raise ValueError("a certificate needs a key, and a key its certificate")
        self.server_name = server_name
        self._alpn = alpn
        self._certificate, self._key, self._authorities = certificate, key, authorities
        self._server = _Reloaded(self._stamp, self._make_server)
        self._client = _Reloaded(self._stamp, self._make_client)

    def server_context(self) -> ssl.SSLContext:
        """For accepting connections. Raises ValueError without a certificate."""
        if self._certificate is None:
            raise ValueError("a TLS server needs a certificate and its key")
        return self._server.get()

    def client_context(self) -> ssl.SSLContext:
        """For making connections."""
        return self._client.get()

    def _stamp(self) -> _Stamp:
        files = (self._certificate, self._key, self._authorities)
        found = [os.stat(path) for path in files if path is not None]
        # A rename changes the inode even when both files were written within the clock's resolution.
        return tuple((status.st_mtime_ns, status.st_size, status.st_ino) for status in found)

    def _make_server(self) -> ssl.SSLContext:
        context = self._configured(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        if self._authorities is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _make_client(self) -> ssl.SSLContext:
        context = self._configured(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        if self._authorities is None:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        return context

    def _configured(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols([self._alpn])
        # A renegotiating or compressing peer is refused (RFC 9113 section 9.2.1).
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        if self._certificate is not None:
            context.load_cert_chain(self._certificate, self._key)
        if self._authorities is not None:
            context.load_verify_locations(self._authorities)
        return context


class _Reloaded:
    """A context made from files, made again when they change."""

    def __init__(self, stamp: Callable[[], _Stamp], make: Callable[[], ssl.SSLContext]) -> None:
        self._stamp_now = stamp
        self._make = make
        self._stamp: _Stamp | None = None
        self._context: ssl.SSLContext | None = None

    def get(self) -> ssl.SSLContext:
        """Raises OSError or ssl.SSLError when the files have never been good."""
        try:
            stamp = self._stamp_now()
            if self._context is None or stamp != self._stamp:
                self._context = self._make()
                # Written only now: files caught half-written are looked at again by the next handshake.
                self._stamp = stamp
        except OSError as error:  # ssl.SSLError is one
            if self._context is None:
                raise
            _log.warning("certificates not reloaded", error=str(error))
        return self._context


async def accept_tls(stream: trio.abc.Stream, files: TlsFiles) -> trio.SSLStream[trio.abc.Stream]:
    """The server's side of a handshake. Raises trio.BrokenResourceError saying why it failed."""
    return await _shaken(
        trio.SSLStream(stream, files.server_context(), server_side=True, https_compatible=True)
    )


async def connect_tls(stream: trio.abc.Stream, files: TlsFiles, host: str) -> trio.SSLStream[trio.abc.Stream]:
    """The client's side of a handshake. Raises trio.BrokenResourceError saying why it failed."""
    name = files.server_name or host
    context = files.client_context()
    return await _shaken(trio.SSLStream(stream, context, server_hostname=name, https_compatible=True))


async def _shaken(stream: trio.SSLStream[trio.abc.Stream]) -> trio.SSLStream[trio.abc.Stream]:
    try:
        await stream.do_handshake()
    except trio.BrokenResourceError as error:
        raise trio.BrokenResourceError(f"TLS handshake failed: {_told(error.__cause__)}") from error
    chosen = stream.selected_alpn_protocol()
    if chosen != ALPN:
        raise trio.BrokenResourceError(f"TLS handshake failed: ALPN agreed on {chosen}, not on {ALPN}")
    return stream


def _told(cause: BaseException | None) -> str:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the certificate is not accepted: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError) and cause.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
        return "the other side does not speak TLS"
    if isinstance(cause, ssl.SSLError) and cause.reason:
        return cause.reason.lower().replace("_", " ")
    return "the connection was closed"


def identity_of(stream: trio.abc.Stream) -> PeerIdentity | None:
    """Who is at the other end; None without TLS, or without a certificate of theirs."""
    if not isinstance(stream, trio.SSLStream):
        return None
    certificate: dict[str, Any] | None = stream.getpeercert()
    if not certificate:
        return None
    # One tuple for each relative name, the least specific first; each of them may have several parts.
    parts = [part for name in certificate.get("subject", ()) for part in name]
    names: tuple[tuple[str, str], ...] = certificate.get("subjectAltName", ())

    def of(kind: str) -> tuple[str, ...]:
        return tuple(value for named, value in names if named == kind)

    return PeerIdentity(
        subject=",".join(f"{_SHORT.get(name, name)}={value}" for name, value in reversed(parts)),
        common_name=next((value for name, value in parts if name == "commonName"), ""),
        dns_names=of("DNS"),
        uris=of("URI"),
        ip_addresses=of("IP Address"),
    )


_SHORT = {
    "commonName": "CN",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "localityName": "L",
    "stateOrProvinceName": "ST",
}

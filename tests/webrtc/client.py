"""A WebRTC client for tests: the other side of ICE, DTLS and SRTP without I/O, and one on a socket of Trio's."""

from __future__ import annotations

import secrets
import socket
import ssl
import struct
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from whispr.webrtc import rtcp, rtp, sdp, stun
from whispr.webrtc.dtls import datagrams, fingerprint
from whispr.webrtc.ice import Credentials
from whispr.webrtc.rtcp import Item
from whispr.webrtc.rtp import RtpPacket
from whispr.webrtc.srtp import PROFILES, Keys, Protection, SrtpError
from whispr.webrtc.stun import Attribute, Kind

PAYLOAD_TYPE = 111


def _identity() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "client")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .sign(key, hashes.SHA256())
    )
    return key, certificate


KEY, _CERTIFICATE = _identity()
CERTIFICATE = _CERTIFICATE.public_bytes(serialization.Encoding.DER)


@dataclass
class Client:
    """One client. `offer`, then `answered`, then datagrams of `check` and `hello`."""

    direction: str = "recvonly"
    profiles: bytes = b":".join(PROFILES)
    certificate: bytes = CERTIFICATE
    """In DER."""
    announced: str = ""
    """The fingerprint; empty for that of the certificate."""
    local: Credentials = field(default_factory=Credentials.new)
    remote: Credentials = field(default_factory=Credentials.new)
    candidates: list[tuple[str, int]] = field(default_factory=list)
    ssrc: int = field(default_factory=lambda: secrets.randbits(32))
    server_ssrc: int = 0
    protection: Protection | None = None
    received: list[RtpPacket] = field(default_factory=list)
    control: list[Item] = field(default_factory=list)
    answers: list[stun.Message] = field(default_factory=list)
    closed: bool = False
    repeated: int = 0
    """Packets that came before."""
    _ssl: SSL.Connection | None = None

    def __post_init__(self) -> None:
        self.announced = self.announced or fingerprint(self.certificate)

    def offer(self, more: Sequence[str] = ()) -> str:
        """The client's offer."""
        lines = [
            "v=0", "o=- 1 1 IN IP4 0.0.0.0", "s=-", "t=0 0", "a=group:BUNDLE 0",
            f"m=audio 9 UDP/TLS/RTP/SAVPF {PAYLOAD_TYPE}", "c=IN IP4 0.0.0.0", "a=mid:0",
            f"a={self.direction}", "a=rtcp-mux", f"a=rtpmap:{PAYLOAD_TYPE} opus/48000/2",
            f"a=rtcp-fb:{PAYLOAD_TYPE} nack", f"a=ice-ufrag:{self.local.ufrag}",
            f"a=ice-pwd:{self.local.password}", f"a=fingerprint:sha-256 {self.announced}", "a=setup:actpass",
            *more, "",
        ]  # fmt: skip
        return "\r\n".join(lines)

    def answered(self, text: str) -> None:
        """Take the server's answer in."""
        session, *media = sdp.parse(text)
        self.remote = sdp.credentials_of(session, media[0])
        self.candidates = [(each.split()[4], int(each.split()[5])) for each in media[0].all("candidate")]
        if (described := media[0].get("ssrc")) is not None:
            self.server_ssrc = int(described.split()[0])

    def check(self, *, nominate: bool = True, more: Sequence[tuple[int, bytes]] = ()) -> bytes:
        """A connectivity check."""
        username = f"{self.remote.ufrag}:{self.local.ufrag}".encode()
        attributes = [
            (int(Attribute.USERNAME), username),
            (int(Attribute.PRIORITY), struct.pack(">I", 1)),
            (int(Attribute.ICE_CONTROLLING), bytes(8)),
            *([(int(Attribute.USE_CANDIDATE), b"")] if nominate else []),
            *more,
        ]
        return stun.build(Kind.REQUEST, secrets.token_bytes(12), attributes, self.remote.password.encode())

    def _checked(self, message: stun.Message) -> list[bytes]:
        """Answer a check of the server's, as a full agent does; which is none of ours to answer is dropped."""
        name = f"{self.local.ufrag}:{self.remote.ufrag}".encode()
        if message.get(Attribute.USERNAME) != name or not message.proves(self.local.password.encode()):
            return []
        mapped = [(int(Attribute.XOR_MAPPED_ADDRESS), stun.xor_mapped("192.0.2.1", 1, message.transaction))]
        return [stun.build(Kind.SUCCESS, message.transaction, mapped, self.local.password.encode())]

    def hello(self) -> list[bytes]:
        """The beginning of the handshake."""
        context = SSL.Context(SSL.DTLS_CLIENT_METHOD)
        context.use_privatekey(KEY)
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:  # the one way that reads nothing of it
            file.write(ssl.DER_cert_to_PEM_cert(self.certificate))
            file.flush()
            context.use_certificate_chain_file(file.name)
        context.set_verify(SSL.VERIFY_NONE)
        context.set_tlsext_use_srtp(self.profiles)
        self._ssl = SSL.Connection(context)
        self._ssl.set_connect_state()
        return self._shake()

    def _shake(self) -> list[bytes]:
        assert self._ssl is not None
        try:
            self._ssl.do_handshake()
        except SSL.WantReadError:
            return self._pending()
        profile = self._ssl.get_selected_srtp_profile()
        material = self._ssl.export_keying_material(b"EXTRACTOR-dtls_srtp", Keys.size(profile))
        self.protection = Protection(Keys.of_server(profile, material), as_client=True)
        return self._pending()

    def _pending(self) -> list[bytes]:
        assert self._ssl is not None
        try:
            return datagrams(self._ssl.bio_read(65536))
        except SSL.WantReadError:
            return []

    def receive(self, datagram: bytes) -> list[bytes]:
        """Take a datagram in; returns what to send."""
        if datagram[0] < 4:
            message = stun.parse(datagram)
            if message.kind == Kind.REQUEST:
                return self._checked(message)
            self.answers.append(message)
        elif datagram[0] < 64:
            assert self._ssl is not None
            self._ssl.bio_write(datagram)
            if self.protection is None:
                return self._shake()
            try:
                self._ssl.recv(1500)
            except SSL.ZeroReturnError:
                self.closed = True
            except SSL.WantReadError:
                pass
        elif self.protection is not None:
            if 192 <= datagram[1] <= 223:
                self.control += rtcp.parse(self.protection.unprotect_rtcp(datagram))
                return []
            try:
                self.received.append(rtp.parse(self.protection.unprotect(datagram)))
            except SrtpError as error:
                self.repeated += "replay" in str(error)
        return []

    def goodbye(self) -> list[bytes]:
        """The client's end of the association."""
        assert self._ssl is not None
        self._ssl.shutdown()
        return self._pending()

    def packet(self, number: int, payload: bytes = b"opus", payload_type: int = PAYLOAD_TYPE) -> bytes:
        """A packet of our own."""
        assert self.protection is not None
        return self.protection.protect(rtp.build(payload_type, number, number * 960, self.ssrc, payload))

    def said(self, compound: bytes) -> bytes:
        """RTCP of our own."""
        assert self.protection is not None
        return self.protection.protect_rtcp(compound)


class Connection:
    """A client on a socket, connected to the first address that it was told."""

    def __init__(self, client: Client, sock: trio.socket.SocketType) -> None:
        self.client = client
        self.socket = sock
        self.location = ""
        """Of its session, if it has one."""

    async def send(self, *datagrams: bytes) -> None:
        """Send each."""
        for datagram in datagrams:
            await self.socket.send(datagram)

    async def receive(self) -> None:
        """Take one datagram in and answer it."""
        await self.send(*self.client.receive(await self.socket.recv(2048)))

    async def connect(self) -> None:
        """Check, then shake hands."""
        await self.send(self.client.check())
        while not self.client.answers:
            await self.receive()
        await self.send(*self.client.hello())
        while self.client.protection is None:
            await self.receive()

    async def hear(self, count: int) -> list[RtpPacket]:
        """Wait for so many packets in all."""
        while len(self.client.received) < count:
            await self.receive()
        return self.client.received


@asynccontextmanager
async def connection(client: Client, host: str = "127.0.0.1") -> AsyncIterator[Connection]:
    """Open a socket of a client that has its answer, to the candidate on this host."""
    address = next(each for each in client.candidates if each[0] == host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with trio.socket.socket(family, socket.SOCK_DGRAM) as sock:
        await sock.connect(address)
        yield Connection(client, sock)

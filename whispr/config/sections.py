"""The tables of the TOML file, but for `[limits]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, model_validator

from whispr.config.fields import CommaSeparated, Listener, NatsUrl, Port, PostgresUrl, RedisUrl, Section


class GatewaySettings(Listener):
    """REST, health, metrics and the API's documentation."""

    port: Port = 8080
    cors_origins: CommaSeparated = ()
    trusted_proxies: CommaSeparated = ()
    """Addresses whose `X-Forwarded-For` is believed."""
    tls_certificate: Path | None = None
    """A chain in PEM: HTTPS instead of HTTP. Replaced files are used from the next connection on."""
    tls_key: Path | None = None

    @model_validator(mode="after")
    def _both_files(self) -> GatewaySettings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together")
        return self

    @property
    def scheme(self) -> str:
        """What its URLs begin with."""
        return "http" if self.tls_certificate is None else "https"


class RpcSettings(Section):
    """gRPC between the services, and of others with them."""

    tls_certificate: Path | None = None
    """A chain in PEM that every service shows, as server and as client; replaced files are used from then on."""
    tls_key: Path | None = None
    tls_authorities: Path | None = None
    """Whose certificates are believed. With it, who calls must show one too: mutual TLS."""
    tls_server_name: str = ""
    """The name that the services' certificates bear, if not the hosts of their endpoints."""

    @model_validator(mode="after")
    def _complete(self) -> RpcSettings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together")
        if self.tls_authorities is not None and self.tls_certificate is None:
            raise ValueError("tls_authorities needs a tls_certificate")
        return self


class WebSocketSettings(Listener):
    """The real-time listener."""

    port: Port = 4000
    allowed_origins: CommaSeparated = ()
    """Origins of browser pages that may connect, beside pages of the same host. `*` allows all."""
    public_url: str = ""
    """Where browsers reach it, such as wss://chat.example.org/socket/websocket; else this host at its port."""
    deflate: bool = True
    """Whether permessage-deflate is negotiated with clients that offer it."""
    deflate_bytes: Annotated[int, Field(ge=0)] = 1024
    """Shorter messages are sent as they are."""
    presence_s: Annotated[float, Field(ge=0, le=10)] = 0.05
    """Changes of presence are gathered this long, and told at once."""
    drain_batch: Annotated[int, Field(ge=1)] = 100
    """Sockets, at least, that a stopping process closes at once; the next batch follows after a moment."""
    drain_spread_s: Annotated[float, Field(ge=0, le=300)] = 2.0
    """Over how long batches are spread, so that clients do not come back all at once; at most half of `drain_s`."""

    @model_validator(mode="after")
    def _is_websocket(self) -> WebSocketSettings:
        if self.public_url and not self.public_url.startswith(("ws://", "wss://")):
            raise ValueError("public_url must begin with ws:// or wss://")
        return self


class ServiceSettings(Listener):
    """A gRPC service: where it listens, and where others find it when it runs in another process."""

    endpoint: str = ""


class AuthSettings(ServiceSettings):
    """AuthService, and the lives of what it issues."""

    port: Port = 50053
    access_token_s: Annotated[int, Field(gt=0)] = 15 * 60
    refresh_token_s: Annotated[int, Field(gt=0)] = 30 * 24 * 3600
    service_token_file: Path | None = None
    """A service token, for a process that does not share the auth service's data folder."""
    hs256_secret: SecretStr = SecretStr("")
    """Sign tokens with this secret of at least 32 bytes, which all services share, instead of Ed25519 keys."""
    hs256_secret_file: Path | None = None
    """The same from a file, one secret a line: the first signs, all verify, so that secrets can be replaced."""

    @model_validator(mode="after")
    def _one_secret(self) -> AuthSettings:
        secret = self.hs256_secret.get_secret_value()
        if secret and self.hs256_secret_file is not None:
            raise ValueError("hs256_secret and hs256_secret_file exclude each other")
        if secret and len(secret.encode()) < 32:
            raise ValueError("hs256_secret must have at least 32 bytes")
        return self


class MessagingSettings(ServiceSettings):
    """MessagingService, and the conversations that it and ChatService are faces of."""

    port: Port = 9090
    search_language: Annotated[str, Field(pattern="^[a-z][a-z_]*$")] = "simple"
    """A text search configuration of PostgreSQL. Changed later, the index is made anew by
    `whispr events replay messaging-search`."""
    keep_messages: bool = False
    """Whether what a deleted account has sent stays, as of a deleted account, instead of being erased."""


class NotificationSettings(ServiceSettings):
    """NotificationService, and the push services it uses."""

    port: Port = 50056
    batch_s: Annotated[float, Field(ge=0, le=300)] = 2.0
    """How long messages of one conversation are gathered into one push."""
    push_ttl_s: Annotated[int, Field(ge=0)] = 24 * 3600
    """How long push services keep trying to reach a device."""
    everyone_max: Annotated[int, Field(ge=0, le=1000)] = 1000
    """Members of a conversation up to which all are told of every message; beyond, of mentions."""
    allow_private_addresses: bool = False
    """Whether webhooks and Web Push may lead into private networks, as on a machine of one's own."""
    allow_http: bool = False
    """Whether they may do without TLS."""
    vapid_key_file: Path | None = None
    """The P-256 key shown to push services of browsers; made in the data folder when not set."""
    vapid_contact: str = ""
    """A mailto: or https: URI by which they reach the operator."""
    fcm_service_account_file: Path | None = None
    """Turns Firebase Cloud Messaging on."""
    fcm_url: str = "https://fcm.googleapis.com"
    apns_key_file: Path | None = None
    """Turns the Apple Push Notification service on; the three that follow go with it."""
    apns_key_id: str = ""
    apns_team_id: str = ""
    apns_topic: str = ""
    apns_url: str = "https://api.push.apple.com"

    @model_validator(mode="after")
    def _complete(self) -> NotificationSettings:
        if self.apns_key_file and not (self.apns_key_id and self.apns_team_id and self.apns_topic):
            raise ValueError("apns_key_file needs apns_key_id, apns_team_id and apns_topic")
        if self.vapid_contact and not self.vapid_contact.startswith(("mailto:", "https:")):
            raise ValueError("vapid_contact must be a mailto: or https: URI")
        return self


class MediaSettings(ServiceSettings):
    """MediaService, its object store, and the URLs of its bytes."""

    port: Port = 50055
    store_url: str = ""
    """`s3://bucket/prefix` or `file:///folder`; a folder in the data folder when empty. Credentials for S3 come
    from the usual `AWS_…` variables, or from the machine's role."""
    s3_endpoint: str = ""
    """Of an S3 service other than Amazon's, such as `https://minio.example.org:9000`."""
    s3_region: str = "us-east-1"
    public_url: str = ""
    """Where clients reach this process's gateway, for signed URLs; its own address when empty."""
    key_dir: Path | None = None
    """Keys that sign URLs, shared by all processes that serve the same media; in the data folder when not set."""
    upload_url_s: Annotated[int, Field(ge=60)] = 24 * 3600
    """How long an upload may take."""
    download_url_s: Annotated[int, Field(ge=60)] = 3600
    """How long a URL of a medium's content holds, at least."""
    unlinked_h: Annotated[int, Field(ge=1)] = 24
    """Hours for which a medium is kept that no message shows."""
    workers: Annotated[int, Field(ge=1, le=64)] = 2
    """Files that a process looks into at a time."""
    scan_command: str = ""
    """A virus scanner: the file's path is added, exit code 0 is clean, 1 infected, others try again."""
    scan_clamd: str = ""
    """ClamAV's daemon instead, at `host:port` or `unix:/path`."""

    @model_validator(mode="after")
    def _one_scanner(self) -> MediaSettings:
        if self.scan_command and self.scan_clamd:
            raise ValueError("scan_command and scan_clamd exclude each other")
        if self.public_url and not self.public_url.startswith(("http://", "https://")):
            raise ValueError("public_url must begin with http:// or https://")
        return self


class ChatSettings(ServiceSettings):
    """Rooms, and the machine that watches them for spam."""

    port: Port = 50051
    antispam: bool = True
    """Whether spam is sanctioned by the machine in rooms that do not turn it off."""
    antispam_bans: bool = False
    """Whether the machine bans by itself, for a day; else it silences for an hour and proposes a ban."""


class StreamSettings(ServiceSettings):
    """Live audio: who listens, how long streams last, WebRTC."""

    port: Port = 50052
    store_url: str = ""
    """Where recordings are stored: `s3://bucket/prefix` or `file:///folder`, by the endpoint, region and credentials
    of media; a folder in the data folder when empty."""
    key_dir: Path | None = None
    """Keys that sign listening URLs, shared by all processes that serve streams; in the data folder when not set."""
    anonymous: bool = True
    """Whether people without an account listen to public and unlisted streams."""
    hls_shared_files: bool = False
    """Whether files of streams that anybody may hear have one URL for all, for a cache in front. ChangeQuality then
    leaves it to their players what they load."""
    listen_url_s: Annotated[int, Field(ge=60, le=7 * 24 * 3600)] = 3600
    """How long URLs to listen by hold, unless their maker says otherwise; also those of recordings."""
    idle_s: Annotated[int, Field(ge=0)] = 3600
    """How long a stream lasts that nothing is sent to, from its start or since its node died; 0 for ever."""
    grace_s: Annotated[float, Field(ge=0, le=600)] = 15.0
    """How long a stream goes on in silence when its source has gone."""
    takeover: bool = False
    """Whether a second source takes the place of the first, rather than being refused."""
    countries_file: Path | None = None
    """A database in MaxMind's format (GeoLite2 Country, DB-IP, …): analytics then count listeners by country."""
    webrtc_port: Port = 0
    """UDP, for sound both ways; 0 for a free one. Of several workers the first takes it, the others the next ones."""
    webrtc_addresses: CommaSeparated = ()
    """Addresses that WebRTC clients are told instead of this machine's own, behind NAT."""
    webrtc_ice_servers: CommaSeparated = ()
    """STUN and TURN servers that clients are told, such as `turn:turn.example.org?transport=tcp`."""
    webrtc_turn_secret: SecretStr = SecretStr("")
    """What TURN servers share with us (coturn's `static-auth-secret`): clients get credentials that end."""


class PostgresSettings(Section):
    """The truth. Without a URL a PostgreSQL of our own runs as a child process."""

    url: PostgresUrl = ""
    pool_size: Annotated[int, Field(ge=1, le=200)] = 8


class RedisSettings(Section):
    """Limits, presence, ended sessions. Without a URL a Valkey of our own runs as a child process."""

    url: RedisUrl = ""


class NatsSettings(Section):
    """Broadcasts and events. Without a URL a NATS of our own runs as a child process."""

    url: NatsUrl = ""


class EventSettings(Section):
    """The event streams: how much each of the four keeps, and who goes first."""

    max_age_s: Annotated[int, Field(ge=0)] = 7 * 24 * 3600
    """Age at which an event leaves its stream; 0 keeps all."""
    max_bytes: Annotated[int, Field(ge=0)] = 256 * 1024 * 1024
    """Of one stream, whose oldest events go when it is full; 0 for no limit."""
    duplicates_s: Annotated[int, Field(ge=600)] = 900
    """How long JetStream knows an event again that is published twice."""
    replicas: Annotated[int, Field(ge=1, le=5)] = 1
    """Copies in a NATS cluster."""
    busy_per_s: Annotated[int, Field(ge=0)] = 50
    """Events that all consumers of a process together handle in a second while it is busy with calls; 0 lifts it."""

    @model_validator(mode="after")
    def _relations(self) -> EventSettings:
        if 0 < self.max_age_s < self.duplicates_s:
            raise ValueError(f"duplicates_s {self.duplicates_s} is over max_age_s {self.max_age_s}")
        return self


class LogSettings(Section):
    """Logs go to standard error."""

    level: Annotated[str, Field(pattern="^(debug|info|warning|error)$")] = "info"
    format: Annotated[str, Field(pattern="^(auto|json|console)$")] = "auto"
    """`auto`: console on a terminal, JSON elsewhere."""
    calls: Annotated[float, Field(ge=0, le=1)] = 0.001
    """The share of calls that went well that is logged, taken at random; those that failed all are."""


class TracingSettings(Section):
    """Traces, exported by OTLP over HTTP. Off without an endpoint."""

    endpoint: str = ""
    """The collector's base URL, such as `http://localhost:4318`."""
    ratio: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The share that is recorded of the traces that begin here; others are as their beginner decided."""

    @model_validator(mode="after")
    def _url(self) -> TracingSettings:
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError("endpoint must begin with http:// or https://")
        return self

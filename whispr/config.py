"""Settings: read once from TOML and the environment, validated as a whole, then passed explicitly.

Precedence, highest first: `WHISPR_…` variables, the variables of the systems Whispr replaces
(`GRPC_PORT`, `USER_SERVICE_GRPC_ENDPOINT`, …), the TOML file, defaults. A section's key is its variable:
`[limits] user_sockets` is `WHISPR_LIMITS_USER_SOCKETS`. Everything wrong is reported at once, each by its
key and the place it came from, so that a deployment is mended in one round.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit, urlunsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

SERVICES = ("auth", "user", "media", "notification", "messaging", "chat")
"""The services this build can serve, in starting order."""

Key = tuple[str, ...]
Origins = dict[Key, str]

DEFAULT_FILE = Path("config/whispr.toml")
PREFIX = "WHISPR_"

_SEED_VARIABLES = {
    "GRPC_PORT": ("messaging", "port"),
    "USER_SERVICE_GRPC_ENDPOINT": ("user", "endpoint"),
    "MEDIA_SERVICE_GRPC_ENDPOINT": ("media", "endpoint"),
    "NOTIFICATION_SERVICE_GRPC_ENDPOINT": ("notification", "endpoint"),
}
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # looked up, not bound
"""Addresses that mean all interfaces, and one by which this host reaches itself."""
_NOT_SETTINGS = frozenset({"WHISPR_CONFIG"})
"""Variables that are read elsewhere and name no setting."""


class ConfigError(Exception):
    """The configuration cannot be used; `problems` says why, one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def _split_commas(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


Port = Annotated[int, Field(ge=0, le=65535)]
CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)]
Limit = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A table of the TOML file: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Listener(Section):
    """Where something listens. `host` empty means the top-level `host`; port 0 picks a free one."""

    host: str = ""
    port: Port


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


class WebSocketSettings(Listener):
    """The real-time listener."""

    port: Port = 4000
    allowed_origins: CommaSeparated = ()
    """Origins of browser pages that may connect, beside pages of the same host. `*` allows all."""


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


class PostgresSettings(Section):
    """The truth. Without a URL a PostgreSQL of our own runs as a child process."""

    url: str = ""
    pool_size: Annotated[int, Field(ge=1, le=200)] = 8


class BackendSettings(Section):
    """Redis or NATS. Without a URL one of our own runs as a child process."""

    url: str = ""


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
    calls: Annotated[float, Field(ge=0, le=1)] = 0.01
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


class Limits(Section):
    """Every limit an operator may move; 0 lifts one. Units come last in a name."""

    message_body_bytes: Limit = 64 * 1024
    grpc_message_bytes: Limit = 4 * 1024 * 1024
    http_body_bytes: Limit = 1024 * 1024
    grpc_connections: Limit = 10_000
    """Connections that a service accepts."""
    grpc_queued_bytes: Limit = 64 * 1024 * 1024
    """What may wait for one client that does not read."""
    grpc_inflated_bytes: Limit = 64 * 1024 * 1024
    """Compressed requests of one connection, all together, when inflated."""
    grpc_unfinished_s: Annotated[float, Field(gt=0)] = 30
    """For the rest of a frame that has begun."""
    grpc_untaken_s: Annotated[float, Field(gt=0)] = 300
    """For a client that takes nothing of what waits for it."""
    streams_per_connection: Limit = 1000
    header_list_bytes: Limit = 16 * 1024
    http_connections: Limit = 10_000
    http_line_bytes: Limit = 8 * 1024
    """The line of a request with its URL; `header_list_bytes` has room for it."""
    http_headers: Limit = 100
    http_head_s: Annotated[float, Field(gt=0)] = 10
    """For the headers of a request, and for the handshake of TLS."""
    http_idle_s: Annotated[float, Field(gt=0)] = 30
    """Between two requests."""
    http_body_gap_s: Annotated[float, Field(gt=0)] = 20
    """Between two pieces of a body."""
    http_send_gap_s: Annotated[float, Field(gt=0)] = 60
    """For a client that takes nothing of its answer."""
    http_deadline_s: Annotated[float, Field(gt=0)] = 5
    """For an API request, from its first byte to its answer's last."""
    websocket_frame_bytes: Limit = 1024 * 1024
    socket_buffer_bytes: Limit = 1024 * 1024
    user_sockets: Limit = 20
    user_messages_per_min: Limit = 100
    socket_operations_per_min: Limit = 200
    conversation_messages_per_min: Limit = 3000
    """Of all its members together."""
    user_calls_per_min: Limit = 3000
    """RPCs and REST requests of one person, over all services."""
    address_calls_per_min: Limit = 6000
    """Of one client address, whoever calls from there; services are not counted."""
    connection_calls_per_min: Limit = 6000
    """Of one gRPC connection that is no service's."""
    auth_attempts_per_hour: Limit = 20
    auth_account_attempts_per_hour: Limit = 100
    """Failed sign-ins to one account from addresses it was never used at, all together."""
    account_sessions: Limit = 100
    """Sessions of an account; signing in beyond ends the one that was not seen for longest."""
    contacts: Limit = 5000
    blocks: Limit = 5000
    data_exports_per_day: Limit = 3
    group_members: Limit = 1000
    public_room_members: Limit = 10_000
    private_room_members: Limit = 1000
    premium_room_members: Limit = 10_000
    user_rooms_per_hour: Limit = 100
    """Rooms one person opens."""
    room_invitations: Limit = 100
    """Good invitations that one member has out for one room."""
    user_reports_per_hour: Limit = 30
    flag_reports: Limit = 3
    """Distinct people whose reports flag a message for review."""
    hide_reports: Limit = 5
    """Distinct people whose reports hide a message until it is reviewed."""
    room_event_queue: Annotated[int, Field(ge=1)] = 256
    """Events that wait for one reader of SubscribeRoomEvents before it is told to begin again."""
    user_subscriptions: Limit = 20
    """Readers of SubscribeRoomEvents that one person has on one process."""
    page_size: Annotated[int, Field(ge=1)] = 50
    page_size_max: Annotated[int, Field(ge=1)] = 100
    user_devices: Limit = 20
    inbox_entries: Limit = 500
    inbox_days: Limit = 90
    push_host_requests: Annotated[int, Field(ge=1)] = 8
    media_file_bytes: Limit = 100 * 1024 * 1024
    media_user_bytes: Limit = 1024 * 1024 * 1024
    media_pending_uploads: Limit = 100
    media_uploads_per_min: Limit = 60
    media_streams: Limit = 64
    """Uploads that one process receives at the same time."""
    media_pixels: Annotated[int, Field(ge=1, le=200_000_000)] = 50_000_000
    """Of a picture or film; what it takes to look into one is about 16 bytes each."""
    typing_expires_s: Annotated[int, Field(ge=1)] = 10
    edit_window_s: Limit = 24 * 3600
    erase_window_s: Limit = 48 * 3600
    """For how long its sender may delete a message for everyone; moderators always may."""
    message_reactions: Limit = 50
    """Different emoji on one message."""
    conversation_pins: Limit = 10
    user_scheduled: Limit = 100
    """Messages of one person that wait to be sent."""

    @model_validator(mode="after")
    def _relations(self) -> Limits:
        if self.page_size > self.page_size_max:
            raise ValueError(f"page_size {self.page_size} is over page_size_max {self.page_size_max}")
        if 0 < self.header_list_bytes < self.http_line_bytes:
            raise ValueError(
                f"http_line_bytes {self.http_line_bytes} is over header_list_bytes {self.header_list_bytes}"
            )
        if 0 < self.grpc_inflated_bytes < self.grpc_message_bytes:
            raise ValueError(
                f"grpc_inflated_bytes {self.grpc_inflated_bytes} cannot hold grpc_message_bytes "
                f"{self.grpc_message_bytes}"
            )
        for carrier in ("grpc_message_bytes", "http_body_bytes", "websocket_frame_bytes"):
            room = getattr(self, carrier)
            if room and self.message_body_bytes and room < self.message_body_bytes:
                raise ValueError(
                    f"{carrier} {room} cannot carry message_body_bytes {self.message_body_bytes}"
                )
        return self


class Settings(BaseSettings):
    """Everything an operator can set."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=PREFIX,
        env_nested_delimiter="_",
        env_nested_max_split=1,
        case_sensitive=False,
        env_ignore_empty=True,
        nested_model_default_partial_update=True,
    )

    data_dir: Path = Path(".whispr")
    """State, keys, and the files of the embedded backends."""
    host: str = "127.0.0.1"
    """The address every listener binds unless its section says otherwise."""
    public_host: str = ""
    """The name clients reach this machine by, for the URLs printed at start; `host` when empty."""
    drain_s: Annotated[float, Field(ge=0, le=300)] = 5.0
    """How long a stopping process waits for work in flight."""

    gateway: GatewaySettings = GatewaySettings()
    websocket: WebSocketSettings = WebSocketSettings()
    auth: AuthSettings = AuthSettings()
    user: ServiceSettings = ServiceSettings(port=50054)
    messaging: MessagingSettings = MessagingSettings()
    chat: ChatSettings = ChatSettings()
    stream: ServiceSettings = ServiceSettings(port=50052)
    media: MediaSettings = MediaSettings()
    notification: NotificationSettings = NotificationSettings()
    postgres: PostgresSettings = PostgresSettings()
    redis: BackendSettings = BackendSettings()
    nats: BackendSettings = BackendSettings()
    events: EventSettings = EventSettings()
    log: LogSettings = LogSettings()
    tracing: TracingSettings = TracingSettings()
    limits: Limits = Limits()

    SECTIONS: ClassVar[tuple[str, ...]] = (
        "gateway", "websocket", "auth", "user", "messaging", "chat", "stream", "media", "notification",
        "postgres", "redis", "nats", "events", "log", "tracing", "limits",
    )  # fmt: skip

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` passes in: it reads the sources itself, so that it knows who said what."""
        return (init_settings,)

    def bind_host(self, section: str) -> str:
        """Return the address the listener of `section` binds."""
        listener: Listener = getattr(self, section)
        return listener.host or self.host

    def reach_host(self, section: str) -> str:
        """Return an address by which this host reaches that listener, in brackets if it is of IPv6."""
        host = self.bind_host(section)
        host = _ANYWHERE.get(host, host)
        return f"[{host}]" if ":" in host else host


class Loaded(BaseModel):
    """Settings with the origin of every value that is not a default."""

    settings: Settings
    origins: Origins


def load(environ: Mapping[str, str] | None = None, file: Path | None = None) -> Loaded:
    """Read the file (`file`, else `WHISPR_CONFIG`, else config/whispr.toml if there) and the environment.

    Raises `ConfigError` with every problem found, each by key and source.
    """
    environ = os.environ if environ is None else environ
    path = file or (Path(environ["WHISPR_CONFIG"]) if environ.get("WHISPR_CONFIG") else None)
    if path is None and DEFAULT_FILE.exists():
        path = DEFAULT_FILE
    values: dict[str, Any] = {}
    origins: Origins = {}
    if path is not None:
        _merge(values, origins, _read_toml(path), lambda _: str(path))
    _merge(values, origins, _seed_values(environ), _seed_name)
    _merge(values, origins, _environment_values(environ), lambda key: PREFIX + "_".join(key).upper())
    problems = [f"{name}: no such setting" for name in _unknown_variables(environ, set(origins.values()))]
    settings = None
    try:
        settings = Settings(**values)
    except ValidationError as error:
        problems += [_describe(dict(problem), origins) for problem in error.errors()]
    if problems or settings is None:
        raise ConfigError(sorted(problems))
    return Loaded(settings=settings, origins=origins)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not valid TOML: {error}"]) from error


def _environment_values(environ: Mapping[str, str]) -> dict[str, Any]:
    source = EnvSettingsSource(Settings)
    source.env_vars = {name.lower(): value for name, value in environ.items() if value != ""}
    return source()


def _seed_values(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, (section, key) in _SEED_VARIABLES.items():
        if environ.get(name):
            values.setdefault(section, {})[key] = environ[name]
    return values


def _seed_name(key: tuple[str, ...]) -> str:
    return next(name for name, path in _SEED_VARIABLES.items() if path == key)


def _merge(values: dict[str, Any], origins: Origins, new: dict[str, Any], name: Callable[[Key], str]) -> None:
    """Lay `new` over `values`, remembering for every leaf who said it."""
    for key, value in _leaves(new):
        target = values
        for part in key[:-1]:
            if not isinstance(target.get(part), dict):
                target[part] = {}
            target = target[part]
        target[key[-1]] = value
        origins[key] = name(key)


def _leaves(values: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and not prefix:
            yield from _leaves(value, (key,))
        else:
            yield (*prefix, key), value


def _unknown_variables(environ: Mapping[str, str], read: set[str]) -> list[str]:
    """Name the variables that look like settings and reached none."""
    known = {PREFIX + name.upper() for name in Settings.model_fields if name not in Settings.SECTIONS}
    for section in Settings.SECTIONS:
        kind = Settings.model_fields[section].annotation
        assert isinstance(kind, type)
        assert issubclass(kind, Section)
        known |= {f"{PREFIX}{section}_{key}".upper() for key in kind.model_fields}
    known |= read | _NOT_SETTINGS
    return [name for name in environ if name.startswith(PREFIX) and name not in known]


def _describe(problem: dict[str, Any], origins: Mapping[tuple[str, ...], str]) -> str:
    key = tuple(str(part) for part in problem["loc"])
    origin = next((origins[key[:n]] for n in range(len(key), 0, -1) if key[:n] in origins), None)
    if origin is None:
        origin = ", ".join(sorted({o for k, o in origins.items() if k[: len(key)] == key})) or "defaults"
    what = "no such setting" if problem["type"] == "extra_forbidden" else problem["msg"]
    given = problem.get("input")
    shown = f" = {given!r}" if isinstance(given, str | int | float) and key[-1:] != ("url",) else ""
    return f"{'.'.join(key) or 'settings'}{shown} (from {origin}): {what}"


def without_password(url: str) -> str:
    """Return a URL fit to be shown: its password, if any, replaced by asterisks."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    netloc = parts.netloc.replace(f":{parts.password}@", ":***@", 1)
    return urlunsplit(parts._replace(netloc=netloc))

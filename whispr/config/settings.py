"""Everything an operator can set, as one immutable value."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from whispr.config.calls import CallSettings
from whispr.config.fields import Listener
from whispr.config.limits import Limits
from whispr.config.sections import (
    AuthSettings,
    ChatSettings,
    EventSettings,
    GatewaySettings,
    LogSettings,
    MediaSettings,
    MessagingSettings,
    NatsSettings,
    NotificationSettings,
    PostgresSettings,
    RedisSettings,
    RpcSettings,
    ServiceSettings,
    StreamSettings,
    TracingSettings,
    WebSocketSettings,
)

PREFIX = "WHISPR_"

_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # looked up, not bound
"""Addresses that mean all interfaces, and one by which this host reaches itself."""


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
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes that serve the same ports, on this machine. PostgreSQL must have room for each one's pool."""
    drain_s: Annotated[float, Field(ge=0, le=300)] = 5.0
    """How long a stopping process waits for work in flight."""
    drain_notice_s: Annotated[float, Field(ge=0, le=300)] = 0.0
    """How long a stopping process says that it is not ready before it stops listening: for a load balancer to see."""

    gateway: GatewaySettings = GatewaySettings()
    websocket: WebSocketSettings = WebSocketSettings()
    auth: AuthSettings = AuthSettings()
    user: ServiceSettings = ServiceSettings(port=50054)
    messaging: MessagingSettings = MessagingSettings()
    chat: ChatSettings = ChatSettings()
    stream: StreamSettings = StreamSettings()
    media: MediaSettings = MediaSettings()
    notification: NotificationSettings = NotificationSettings()
    postgres: PostgresSettings = PostgresSettings()
    redis: RedisSettings = RedisSettings()
    nats: NatsSettings = NatsSettings()
    events: EventSettings = EventSettings()
    rpc: RpcSettings = RpcSettings()
    calls: CallSettings = CallSettings()
    log: LogSettings = LogSettings()
    tracing: TracingSettings = TracingSettings()
    limits: Limits = Limits()

    SECTIONS: ClassVar[tuple[str, ...]] = (
        "gateway", "websocket", "auth", "user", "messaging", "chat", "stream", "media", "notification",
        "postgres", "redis", "nats", "events", "rpc", "calls", "log", "tracing", "limits",
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

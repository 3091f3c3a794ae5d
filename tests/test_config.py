"""Configuration is validated as a whole, and every error names its key and where it came from."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from whispr.config import ConfigError, load, without_password


def problems(environ: dict[str, str] | None = None, file: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load(environ or {}, file)
    return raised.value.problems


def test_the_ports_are_the_contract() -> None:
    """Without any configuration each listener has the port that clients are told of."""
    settings = load({}).settings
    ports = {s: getattr(settings, s).port for s in ("gateway", "websocket", "messaging", "auth", "user")}
    assert ports == {"gateway": 8080, "websocket": 4000, "messaging": 9090, "auth": 50053, "user": 50054}


def test_environment_beats_seed_variable_beats_file(tmp_path: Path) -> None:
    """A value is taken from the most specific source, and its origin is remembered."""
    file = tmp_path / "whispr.toml"
    file.write_text("[messaging]\nport = 1\n[gateway]\nport = 2\n")
    loaded = load({"GRPC_PORT": "3"}, file)
    assert loaded.settings.messaging.port == 3
    assert loaded.settings.gateway.port == 2
    assert loaded.origins["messaging", "port"] == "GRPC_PORT"
    assert loaded.origins["gateway", "port"] == str(file)
    assert load({"GRPC_PORT": "3", "WHISPR_MESSAGING_PORT": "4"}, file).settings.messaging.port == 4


def test_seed_endpoints_work() -> None:
    """The variables of the systems Whispr replaces set where a service is found, and leave its port alone."""
    user = load({"USER_SERVICE_GRPC_ENDPOINT": "user-service:9090"}).settings.user
    assert (user.endpoint, user.port) == ("user-service:9090", 50054)


def test_limits_are_set_by_their_names() -> None:
    """WHISPR_LIMITS_<NAME> sets the limit of that name; 0 lifts it."""
    limits = load(
        {"WHISPR_LIMITS_USER_MESSAGES_PER_MIN": "0", "WHISPR_LIMITS_USER_SOCKETS": "3"}
    ).settings.limits
    assert limits.user_messages_per_min == 0
    assert limits.user_sockets == 3


def test_values_may_come_in_files(tmp_path: Path) -> None:
    """`_FILE` after a variable's name reads it from there; what cannot be read, or is said twice, is an error."""
    secret = tmp_path / "url"
    secret.write_text("postgres://whispr:hidden@db/whispr\n")
    assert load({"WHISPR_POSTGRES_URL_FILE": str(secret)}).settings.postgres.url.endswith(":hidden@db/whispr")
    assert load({"WHISPR_AUTH_SERVICE_TOKEN_FILE": "t"}).settings.auth.service_token_file == Path("t")
    report = problems({"WHISPR_NATS_URL_FILE": str(tmp_path / "none"), "WHISPR_NOPE_FILE": "x"})
    assert [line.partition(":")[0] for line in report] == ["WHISPR_NATS_URL_FILE", "WHISPR_NOPE_FILE"]
    twice = {"WHISPR_POSTGRES_URL_FILE": str(secret), "WHISPR_POSTGRES_URL": "postgres://x/y"}
    assert problems(twice) == ["WHISPR_POSTGRES_URL_FILE: WHISPR_POSTGRES_URL is set too"]


def test_tls_between_services_is_whole() -> None:
    """A certificate goes with its key, and whoever asks for certificates has one."""
    assert "go together" in problems({"WHISPR_RPC_TLS_KEY": "k"})[0]
    assert "needs a tls_certificate" in problems({"WHISPR_RPC_TLS_AUTHORITIES": "a"})[0]


def test_every_error_is_reported_at_once_by_key_and_source(tmp_path: Path) -> None:
    """One report names each bad value, unknown key and unknown variable, and who said it."""
    file = tmp_path / "whispr.toml"
    file.write_text("[gateway]\nport = 'high'\ncolour = 1\n[limits]\nuser_sockets = -1\n")
    report = problems(
        {"WHISPR_WEBSOCKET_PORT": "70000", "WHISPR_NONSENSE": "1", "WHISPR_LIMITS_NOPE": "1"}, file
    )
    assert len(report) == 6
    text = "\n".join(report)
    for key, source in (
        ("gateway.port = 'high'", str(file)),
        ("gateway.colour", str(file)),
        ("limits.user_sockets = -1", str(file)),
        ("websocket.port = '70000'", "WHISPR_WEBSOCKET_PORT"),
        ("limits.nope", "WHISPR_LIMITS_NOPE"),
        ("WHISPR_NONSENSE", "no such setting"),
    ):
        assert any(key in line and source in line for line in report), (key, text)


def test_limits_that_contradict_each_other_are_refused() -> None:
    """A page cannot be larger than the largest, nor a body larger than what carries it."""
    assert "page_size_max" in problems({"WHISPR_LIMITS_PAGE_SIZE": "101"})[0]
    assert "cannot carry" in problems({"WHISPR_LIMITS_WEBSOCKET_FRAME_BYTES": "1000"})[0]


@pytest.mark.parametrize(("content", "what"), [("[gateway", "not valid TOML"), (None, "cannot be read")])
def test_an_unreadable_file_is_named(tmp_path: Path, content: str | None, what: str) -> None:
    """A file that is not there or not TOML is an error naming it, not a silent default."""
    file = tmp_path / "whispr.toml"
    if content is not None:
        file.write_text(content)
    (problem,) = problems({"WHISPR_CONFIG": str(file)})
    assert str(file) in problem
    assert what in problem


def test_secrets_of_urls_are_not_shown() -> None:
    """A URL in a report or listing has its password hidden."""
    assert without_password("postgres://u:hunter2@h:5/db") == "postgres://u:***@h:5/db"
    assert without_password("nats://h:4222") == "nats://h:4222"
    assert without_password("nats://token@h:4222") == "nats://***@h:4222", "its user is a token"
    assert without_password("postgres://u@h/db") == "postgres://u@h/db"
    assert without_password("redis://:hunter2@[::1") == "redis://:***@[::1", "also of what is no URL"
    shown = without_password("postgresql:///db?host=%2Frun&password=hunter2&sslmode=require#x")
    assert shown == "postgresql:///db?host=%2Frun&password=***&sslmode=require#x"
    assert without_password("hunter2, no URL") == "hunter2, no URL"


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("postgres", "mysql://u:hunter2@h/db"),
        ("postgres", "u:hunter2@h/db"),
        ("postgres", "postgres://u:hunter2@h:port/db"),
        ("redis", "http://:hunter2@h"),
        ("redis", "redis://:hunter2@[::1"),
        ("nats", "hunter2@h:4222"),
        ("nats", "nats://hunter2@h:4222:4223"),
    ],
)
def test_a_url_of_something_else_is_refused(name: str, url: str) -> None:
    """What cannot be a backend's URL is an error of the configuration that names its key, and shows no secret."""
    (problem,) = problems({f"WHISPR_{name.upper()}_URL": url})
    assert problem.startswith(f"{name}.url (from WHISPR_{name.upper()}_URL): ")
    assert "hunter2" not in problem


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("postgres", "postgresql://whispr@/whispr?host=%2Frun%2Fpostgres&port=5432"),
        ("postgres", "postgres://u:p%40@a:1,b:2/db"),
        ("redis", "unix:///run/valkey.sock"),
        ("redis", "rediss://:p@[::1]:6379/0"),
        ("nats", "tls://token@h:4222"),
    ],
)
def test_urls_of_backends_are_taken(name: str, url: str) -> None:
    """Sockets, several hosts, IPv6, TLS, tokens."""
    assert getattr(load({f"WHISPR_{name.upper()}_URL": url}).settings, name).url == url


def test_a_mistyped_secret_is_not_repeated(tmp_path: Path) -> None:
    """An unknown key may be a known one with a slip: its value is not repeated; nor are secrets of a wrong type."""
    file = tmp_path / "whispr.toml"
    file.write_text('[postgres]\nulr = "postgres://u:hunter2@h"\n[stream]\nwebrtc_turn_secret = 4711\n')
    report = "\n".join(problems(file=file))
    assert "postgres.ulr" in report
    assert "stream.webrtc_turn_secret" in report
    assert "hunter2" not in report
    assert "4711" not in report


def test_settings_do_not_change() -> None:
    """Settings are frozen: what was validated is what runs."""
    settings = load({}).settings
    with pytest.raises(ValidationError):
        settings.limits.user_sockets = 5

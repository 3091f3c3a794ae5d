"""HTTPS at the gateway, with certificates that are replaced while it runs, and the limits an operator sets."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.certificates import Authority
from whispr import limits
from whispr.asgi import HttpLimits
from whispr.config import ConfigError, load
from whispr.errors import Code, WhisprError
from whispr.gateway.server import GatewayOptions
from whispr.rpc.tls import TlsFiles


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "authority")


async def certificate_of(port: int, trusted: ssl.SSLContext) -> bytes | None:
    """What the gateway shows a new client."""
    stream = await trio.open_ssl_over_tcp_stream(
        "localhost", port, ssl_context=trusted, https_compatible=True
    )
    await stream.do_handshake()
    shown: bytes | None = stream.getpeercert(binary_form=True)
    assert stream.selected_alpn_protocol() in (None, "http/1.1")
    await stream.aclose()
    return shown


async def test_https_with_certificates_replaced_while_it_runs(
    open_gateway: Any, authority: Authority
) -> None:
    """New connections are shown the new certificate; those that are there go on."""
    files = TlsFiles(*authority.issue("gateway"), alpn="http/1.1")
    trusted = ssl.create_default_context(cafile=authority.file)
    async with open_gateway(tls=files) as served:
        first = await certificate_of(served.port, trusted)
        base = f"https://localhost:{served.port}"
        async with httpx.AsyncClient(base_url=base, verify=trusted, trust_env=False) as client:
            assert (await client.get("/healthz")).json() == {"status": "alive"}
            authority.issue("gateway")
            second = await certificate_of(served.port, trusted)
            assert first != second
            assert (await client.get("/v1/users/me")).status_code == 401


async def test_a_certificate_that_cannot_be_used_stops_the_start(open_gateway: Any, tmp_path: Path) -> None:
    """The error names the settings, before anybody connects."""
    for content in (None, "this is no certificate"):
        paths = tmp_path / "a.pem", tmp_path / "a.key"
        if content is not None:
            for path in paths:
                path.write_text(content)
        with pytest.raises(ExceptionGroup) as caught:
            async with open_gateway(tls=TlsFiles(*paths, alpn="http/1.1")):
                pass
        error: BaseException = caught.value
        while isinstance(error, ExceptionGroup):
            (error,) = error.exceptions
        assert isinstance(error, WhisprError)
        assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "bad_setting")
        assert "WHISPR_GATEWAY_TLS_CERTIFICATE" in error.message


def options(**environ: str) -> GatewayOptions:
    return limits.gateway(load({f"WHISPR_{name}": value for name, value in environ.items()}).settings)


def test_every_limit_of_the_listener_can_be_set() -> None:
    """By the names of the settings; what is not set is what the server has of itself."""
    usual = options()
    assert usual.http == HttpLimits()
    assert usual.tls is None
    changed = options(
        LIMITS_HTTP_CONNECTIONS="7",
        LIMITS_HTTP_LINE_BYTES="100",
        LIMITS_HTTP_HEADERS="5",
        LIMITS_HEADER_LIST_BYTES="2000",
        LIMITS_HTTP_HEAD_S="1.5",
        LIMITS_HTTP_IDLE_S="2.5",
        LIMITS_HTTP_BODY_GAP_S="3.5",
        LIMITS_HTTP_SEND_GAP_S="4.5",
        LIMITS_HTTP_BODY_BYTES="70000",
        LIMITS_HTTP_DEADLINE_S="5.5",
    )
    assert changed.http == HttpLimits(
        line_bytes=100,
        head_bytes=2000,
        headers=5,
        head_s=1.5,
        idle_s=2.5,
        body_gap_s=3.5,
        send_gap_s=4.5,
        connections=7,
    )
    assert (changed.rest.body_bytes, changed.rest.deadline_s) == (70000, 5.5)
    lifted = options(LIMITS_HTTP_CONNECTIONS="0", LIMITS_HTTP_HEADERS="0", LIMITS_HEADER_LIST_BYTES="0").http
    assert (lifted.connections, lifted.headers, lifted.head_bytes) == (0, 0, 0)


def test_every_limit_of_rpc_connections_can_be_set() -> None:
    """Likewise."""
    environ = {
        "WHISPR_LIMITS_GRPC_CONNECTIONS": "7",
        "WHISPR_LIMITS_GRPC_QUEUED_BYTES": "8000000",
        "WHISPR_LIMITS_GRPC_INFLATED_BYTES": "9000000",
        "WHISPR_LIMITS_GRPC_UNFINISHED_S": "1.5",
        "WHISPR_LIMITS_GRPC_UNTAKEN_S": "2.5",
    }
    changed = limits.rpc(load(environ).settings)
    assert (changed.accepted_connections_max, changed.http2.queued_bytes_max) == (7, 8_000_000)
    assert (changed.inflated_bytes_max, changed.unfinished_s, changed.untaken_s) == (9_000_000, 1.5, 2.5)


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"GATEWAY_TLS_CERTIFICATE": "a.pem"}, "tls_certificate and tls_key go together"),
        ({"GATEWAY_TLS_KEY": "a.key"}, "tls_certificate and tls_key go together"),
        ({"LIMITS_HTTP_HEAD_S": "0"}, "http_head_s"),
        ({"LIMITS_HEADER_LIST_BYTES": "100"}, "http_line_bytes 8192 is over header_list_bytes 100"),
        ({"LIMITS_GRPC_INFLATED_BYTES": "100"}, "cannot hold grpc_message_bytes"),
    ],
)
def test_settings_that_contradict_each_other(environ: dict[str, str], told: str) -> None:
    """Each is named."""
    with pytest.raises(ConfigError) as caught:
        options(**environ)
    assert told in str(caught.value)


def test_the_certificates_of_a_setting_are_the_gateways(authority: Authority) -> None:
    """Both files, and URLs that say https."""
    certificate, key = authority.issue("configured")
    environ = {"WHISPR_GATEWAY_TLS_CERTIFICATE": str(certificate), "WHISPR_GATEWAY_TLS_KEY": str(key)}
    settings = load(environ).settings
    assert settings.gateway.scheme == "https"
    tls = limits.gateway(settings).tls
    assert tls is not None
    assert tls.server_context().cert_store_stats()["x509"] == 0

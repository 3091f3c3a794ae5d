"""Mutual TLS between the services, and secrets that come in files."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.x509 import DNSName

from tests import product
from tests.certificates import Authority
from whispr.errors import Code, WhisprError
from whispr.rpc.channel import open_channel
from whispr.rpc.tls import TlsFiles
from whispr.v1 import auth_pb2
from whispr.v1.auth_grpc import AuthServiceStub


@pytest.mark.slow
async def test_services_know_each_other_by_certificates(tmp_path: Path) -> None:
    """Everything works as without; who has no certificate of the authority is not even heard."""
    authority = Authority(tmp_path, "authority")
    certificate, key = authority.issue("whispr", DNSName("services.whispr"))
    environ = {
        "WHISPR_RPC_TLS_CERTIFICATE": str(certificate),
        "WHISPR_RPC_TLS_KEY": str(key),
        "WHISPR_RPC_TLS_AUTHORITIES": str(authority.file),
        "WHISPR_RPC_TLS_SERVER_NAME": "services.whispr",
    }
    with product.running(tmp_path / "data", environ) as running:
        _, token = running.sign_up("alice")
        bob, _ = running.sign_up("bob")
        conversation = running.conversation(token, "direct", bob)
        status, _ = running.call(
            "POST", f"/v1/conversations/{conversation}/messages", {"text": "hello"}, token
        )
        assert status == 200
        target = f"127.0.0.1:{running.ports['auth']}"
        for tls, code in (
            (TlsFiles(certificate, key, authority.file), None),
            (TlsFiles(authorities=authority.file), Code.UNAVAILABLE),
            (None, Code.UNAVAILABLE),
        ):
            async with open_channel(target, tls=tls) as channel:
                try:
                    await AuthServiceStub(channel).GetJwks(auth_pb2.GetJwksRequest())
                    heard = None
                except WhisprError as error:
                    heard = error.code
            assert heard is code

"""Signing keys on disk: made once, kept private, read by everybody who shares the folder."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from whispr.services.auth.keys import (
    SERVICE_TOKEN_LIFETIME_S,
    KeyFolderError,
    ServiceToken,
    ensure_keys,
    load_keys,
)
from whispr.tokens import Verifier


def pem(key: Ed25519PrivateKey | X25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_a_first_start_makes_private_keys(tmp_path: Path) -> None:
    """The folder is 0700, the key 0600, and no draft is left behind."""
    folder = tmp_path / "data" / "keys"
    ensure_keys(folder)
    assert [path.name for path in folder.iterdir()] == ["0001.pem"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "0001.pem").stat().st_mode) == 0o600


def test_a_second_start_keeps_the_key(tmp_path: Path) -> None:
    """Tokens outlive a restart."""
    assert (
        ensure_keys(tmp_path).signer.kid == ensure_keys(tmp_path).signer.kid == load_keys(tmp_path).signer.kid
    )


def test_processes_that_start_together_agree(tmp_path: Path) -> None:
    """Whoever loses the race uses the winner's key."""
    with ThreadPoolExecutor(8) as pool:
        rings = list(pool.map(lambda _: ensure_keys(tmp_path / "keys"), range(16)))
    assert len({ring.signer.kid for ring in rings}) == 1
    assert len(list((tmp_path / "keys").iterdir())) == 1


def test_the_newest_key_signs_and_all_verify(tmp_path: Path) -> None:
    """Adding a file rotates the key; tokens of the old one stay good."""
    first = ensure_keys(tmp_path)
    (tmp_path / "0002.pem").write_bytes(pem(Ed25519PrivateKey.generate()))
    (tmp_path / "0002.pem").chmod(0o600)
    ring = load_keys(tmp_path)
    assert ring.signer.kid != first.signer.kid
    assert {key.kid for key in ring.public_keys} == {first.signer.kid, ring.signer.kid}


def test_a_folder_without_keys_says_what_to_do(tmp_path: Path) -> None:
    """A process that only reads keys does not make them."""
    with pytest.raises(KeyFolderError, match="start the auth service once"):
        load_keys(tmp_path)


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (b"not a key", 0o600, "not a private key"),
        (pem(X25519PrivateKey.generate()), 0o600, "not an Ed25519 key"),
        (pem(Ed25519PrivateKey.generate()), 0o644, "chmod 600"),
    ],
)
def test_a_bad_key_file_is_named(tmp_path: Path, content: bytes, mode: int, message: str) -> None:
    """A file that is no key, another kind of key, or open to others is refused by name."""
    path = tmp_path / "0001.pem"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(KeyFolderError, match=message) as caught:
        load_keys(tmp_path)
    assert str(path) in str(caught.value)


def test_a_service_token_is_renewed_before_it_expires(tmp_path: Path) -> None:
    """The same token is given out for half of its life, then a new one, each good when given."""
    ring = ensure_keys(tmp_path)
    now = 1_800_000_000.0
    token = ServiceToken(ring.signer, "gateway", clock=lambda: now)
    verifier = Verifier(ring.public_keys, clock=lambda: now)
    first = token()
    now += SERVICE_TOKEN_LIFETIME_S / 2 - 1
    assert token() == first
    now += 1
    assert token() != first
    assert verifier.verify(token()).username == "gateway"

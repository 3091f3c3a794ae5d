"""Signing keys on disk: made once, kept private, read by everybody who shares the folder."""

from __future__ import annotations

import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from whispr.services.auth.keys import (
    PUBLISH_S,
    SERVICE_TOKEN_LIFETIME_S,
    KeyFolderError,
    Keys,
    ServiceToken,
    ensure_keys,
    load_keys,
    mint_service_token,
    read_keys,
    retire,
    rotate,
)
from whispr.tokens import SharedSecret, Signer, Verifier


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


def test_the_newest_published_key_signs_and_all_verify(tmp_path: Path) -> None:
    """A new key verifies at once and signs when everybody has had time to see it; tokens of the old stay good."""
    now = time.time()
    first = ensure_keys(tmp_path)
    second = rotate(tmp_path)
    for after_s, signs in ((0.0, first.signer.kid), (PUBLISH_S + 1, second.signer.kid)):
        ring = load_keys(tmp_path, clock=lambda after_s=after_s: now + after_s)  # type: ignore[misc]  # bound now
        assert ring.signer.kid == signs
        assert {key.kid for key in ring.keys} == {first.signer.kid, second.signer.kid}
    leaked = rotate(tmp_path, at_once=True)
    assert load_keys(tmp_path).signer.kid == leaked.signer.kid


def test_a_running_process_follows_the_folder(tmp_path: Path) -> None:
    """What is added is used, what is removed is dropped, and a folder that became unreadable changes nothing."""
    first = ensure_keys(tmp_path).signer.kid
    keys = Keys(tmp_path)
    second = rotate(tmp_path, at_once=True).signer.kid
    keys.reload()
    assert keys.signer.kid == second
    assert {key.kid for key in keys.keys} == {first, second}
    retire(tmp_path, first, 900, at_once=True)
    keys.reload()
    assert [key.kid for key in keys.public_keys] == [second]
    (tmp_path / "0002.pem").chmod(0o644)
    keys.reload()
    assert keys.signer.kid == second


def test_a_key_is_retired_when_its_tokens_have_expired(tmp_path: Path) -> None:
    """Not the one that signs, not one whose tokens may live, unless it has leaked."""
    first = ensure_keys(tmp_path).signer.kid
    with pytest.raises(KeyFolderError, match="rotate first"):
        retire(tmp_path, first, 900)
    rotate(tmp_path, at_once=True)
    with pytest.raises(KeyFolderError, match="may be alive for"):
        retire(tmp_path, "0001", 900)
    with pytest.raises(KeyFolderError, match="no key nonsense"):
        retire(tmp_path, "nonsense", 900)
    made_at = time.time() - PUBLISH_S - 901
    os.utime(tmp_path / "0002.pem", (made_at, made_at))
    assert retire(tmp_path, "0001", 900).signer.kid == first
    assert [file.number for file in read_keys(tmp_path)] == [2]


def test_rotations_at_the_same_time_make_a_key_each(tmp_path: Path) -> None:
    """No key is overwritten by another."""
    ensure_keys(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: rotate(tmp_path), range(8)))
    assert sorted(file.number for file in made) == list(range(2, 10))
    assert len({file.signer.kid for file in read_keys(tmp_path)}) == 9


def test_a_shared_secret_signs_beside_the_folder(tmp_path: Path) -> None:
    """The first secret signs; the others and the folder's keys verify; secrets are not published."""
    one, two = (SharedSecret(letter * 32) for letter in (b"a", b"b"))
    folder_key = ensure_keys(tmp_path).signer
    ring = load_keys(tmp_path, lambda: (one, two))
    assert ring.signer.kid == one.kid
    assert [key.kid for key in ring.public_keys] == [folder_key.kid]
    verifier = Verifier(ring.keys)
    for signer in (ring.signer, Signer(two), folder_key):
        assert verifier.verify(mint_service_token(signer, "x")).username == "x"
    bare = tmp_path / "bare"
    assert ensure_keys(bare, lambda: (one,)).public_keys == ()
    assert not bare.exists()


def test_a_service_token_is_renewed_when_another_key_signs(tmp_path: Path) -> None:
    """The old key may be removed before its tokens expire."""
    ensure_keys(tmp_path)
    keys = Keys(tmp_path)
    token = ServiceToken(lambda: keys.signer, "gateway")
    first = token()
    assert token() == first
    rotate(tmp_path, at_once=True)
    keys.reload()
    assert Verifier([keys.signer.public_key]).verify(token()).username == "gateway"


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


def test_a_service_token_outlives_a_clock_that_was_set_back(tmp_path: Path) -> None:
    """A token minted while the clock was ahead is not given out once it has been put right."""
    ring = ensure_keys(tmp_path)
    now = 1_800_003_600.0
    token = ServiceToken(ring.signer, "gateway", clock=lambda: now)
    verifier = Verifier(ring.public_keys, clock=lambda: now)
    token()
    now -= 3600
    assert verifier.verify(token()).username == "gateway"

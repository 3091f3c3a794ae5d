"""What lets a process speak for itself: keys, shared secrets, and files that say what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from whispr.config import ConfigError, Settings, load
from whispr.credentials import Credentials, mint
from whispr.errors import WhisprError
from whispr.services.auth.keys import ensure_keys
from whispr.tokens import SharedSecret, Verifier


def settings(folder: Path, **environ: str) -> Settings:
    names = {f"WHISPR_AUTH_{name.upper()}": value for name, value in environ.items()}
    return load({"WHISPR_DATA_DIR": str(folder / "data"), **names}).settings


def test_a_secret_file_rotates_secrets(tmp_path: Path) -> None:
    """The first line signs, all verify, blank lines count for nothing; it is read anew while running."""
    path = tmp_path / "secrets"
    path.write_text("a" * 32 + "\n\n" + "b" * 40 + "\n")
    path.chmod(0o600)
    credentials = Credentials(settings(tmp_path, hs256_secret_file=str(path)), issues=True)
    assert credentials.keys().signer.kid == SharedSecret(b"a" * 32).kid
    old = credentials.service_token()
    path.write_text("c" * 32 + "\n" + "a" * 32 + "\n")
    trusted = Verifier(credentials.trusted())
    assert credentials.keys().signer.kid == SharedSecret(b"c" * 32).kid
    assert trusted.verify(old).is_service
    assert trusted.verify(credentials.service_token()).is_service
    path.write_text("c" * 32)
    trusted.replace_keys(credentials.trusted())
    with pytest.raises(WhisprError):
        trusted.verify(old)


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [("", 0o600, "no secret"), ("short", 0o600, "line 1: .*32 bytes"), ("a" * 32, 0o644, "chmod 600")],
)
def test_a_bad_secret_file_is_named(tmp_path: Path, content: str, mode: int, message: str) -> None:
    """An empty file, a short secret and an open file are refused at the start, by name."""
    path = tmp_path / "secrets"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(WhisprError, match=message) as caught:
        Credentials(settings(tmp_path, hs256_secret_file=str(path)), issues=False)
    assert str(path) in caught.value.message


def test_a_missing_secret_file_is_named(tmp_path: Path) -> None:
    """A path to nothing is an error, not a reason to sign otherwise."""
    with pytest.raises(WhisprError, match="cannot read"):
        Credentials(settings(tmp_path, hs256_secret_file=str(tmp_path / "none")), issues=True)


def test_a_short_secret_is_a_bad_setting(tmp_path: Path) -> None:
    """The report names the setting, and the secret shows nowhere."""
    with pytest.raises(ConfigError, match=r"HS256_SECRET.*at least 32 bytes") as caught:
        settings(tmp_path, hs256_secret="too short a one")
    assert "too short a one" not in str(caught.value)
    assert "a" * 32 not in repr(settings(tmp_path, hs256_secret="a" * 32))


def test_keys_of_other_kinds_do_not_sign(tmp_path: Path) -> None:
    """A process that was given a token starts again, though a service has left keys of its own in the folder."""
    token = tmp_path / "token"
    token.write_text("given")
    own = settings(tmp_path, service_token_file=str(token))
    ensure_keys(own.data_dir / "keys" / "media")
    assert Credentials(own, issues=False).service_token() == "given"


def test_published_keys_and_the_own_secret_are_trusted(tmp_path: Path) -> None:
    """Away from the auth service, keys are what it publishes, and secrets what was configured."""
    own = settings(tmp_path, hs256_secret="s" * 32)
    published = ensure_keys(tmp_path / "elsewhere").public_keys
    credentials = Credentials(own, issues=False)
    assert {key.kid for key in credentials.trusted(published)} == {
        published[0].kid,
        SharedSecret(b"s" * 32).kid,
    }
    assert Verifier(credentials.verifying_keys).verify(mint(own, "billing", 60)).username == "billing"

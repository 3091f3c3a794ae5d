"""The rules of accounts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whispr.errors import WhisprError
from whispr.services.auth import domain


def faults(username: str = "ada", password: str = "12345678", name: str = "", email: str = "") -> set[str]:
    try:
        domain.registration(username, password, name, email)
    except WhisprError as error:
        return set(error.fields)
    return set()


@pytest.mark.parametrize("username", ["ada", "Ada.L-2_x", "a" * 32, "..."])
def test_good_usernames(username: str) -> None:
    """3 to 32 letters, digits, dots, dashes and underscores."""
    assert not faults(username=username)


@pytest.mark.parametrize(
    "username", ["", "ab", "a" * 33, "a b", "ada\n", "ädä", "ada@x", "\u0430da", "ada/../x"]
)
def test_bad_usernames(username: str) -> None:
    """Anything else, look-alikes from other alphabets included, is refused."""
    assert faults(username=username) == {"username"}


@pytest.mark.parametrize(
    ("password", "good"),
    [("1234567", False), ("12345678", True), ("🔑" * 8, True), ("x" * 1024, True), ("é" * 513, False)],
)
def test_password_lengths(password: str, good: bool) -> None:
    """At least eight characters, at most 1,024 bytes."""
    assert faults(password=password) == (set() if good else {"password"})


@pytest.mark.parametrize("email", ["a@b.co", "first.last+tag@sub.example.org", "ü@bücher.example"])
def test_good_addresses(email: str) -> None:
    """What may be an address passes: mail that arrives is the proof, not a pattern."""
    assert not faults(email=email)


@pytest.mark.parametrize(
    "email", ["a", "@b.co", "a@b", "a@b.", "a b@c.de", "a@b@c.de", "a@b.co\r\n", "a@" + "b" * 260]
)
def test_bad_addresses(email: str) -> None:
    """What cannot be an address is refused, line breaks above all."""
    assert faults(email=email) == {"email"}


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("Ada Lovelace", True),
        ("أدا", True),
        ("👩‍🚀", True),
        ("x" * 64, True),
        ("x" * 65, False),
        ("a\x00b", False),
        ("a\x1b[31mb", False),
        ("a\u2028b", False),
        ("a\u202eb", False),
    ],
)
def test_display_names(name: str, good: bool) -> None:
    """Any script, 64 characters, nothing that breaks a line or a terminal or turns text around."""
    assert faults(name=name) == (set() if good else {"display_name"})


@given(st.text())
def test_a_device_name_is_always_showable(device: str) -> None:
    """A client's free text becomes one clean line of at most 128 characters."""
    shown = domain.device_name(device)
    assert len(shown) <= 128
    assert not domain.has_control_characters(shown)

"""Passwords: hashed off the event loop, bounded, and telling nothing by time."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import trio
import trio.testing
from argon2 import PasswordHasher, extract_parameters

from whispr.errors import Code, WhisprError
from whispr.services.auth.passwords import Passwords, owasp_hasher


def cheap(memory_kib: int = 8) -> PasswordHasher:
    return PasswordHasher(time_cost=1, memory_cost=memory_kib, parallelism=1)


class CountingHasher(PasswordHasher):
    """Counts verifications, and can be held."""

    def __init__(self) -> None:
        super().__init__(time_cost=1, memory_cost=8, parallelism=1)
        self.verified: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def verify(self, hash: Any, password: Any) -> Any:  # noqa: A002  # the base class names it so
        self.gate.wait(10)
        self.verified.append(str(hash))
        return super().verify(hash, password)


async def test_a_password_verifies() -> None:
    """The right password passes, another does not, and nothing passes without a hash."""
    passwords = Passwords(cheap())
    stored = await passwords.hash("correct horse")
    assert await passwords.verify(stored, "correct horse")
    assert not await passwords.verify(stored, "wrong horse")
    assert not await passwords.verify(None, "correct horse")
    assert not await passwords.verify("not a hash", "correct horse")


async def test_one_password_on_two_keyboards() -> None:
    """Composed and decomposed accents are the same password."""
    passwords = Passwords(cheap())
    assert await passwords.verify(await passwords.hash("cafe\u0301 noir"), "caf\u00e9 noir")


async def test_an_unknown_account_costs_the_same_work() -> None:
    """Without a hash one verification is made all the same, with the parameters of real hashes."""
    hasher = CountingHasher()
    passwords = Passwords(hasher)
    await passwords.verify(None, "correct horse")
    await passwords.verify(None, "correct horse")
    assert len(hasher.verified) == 2
    parameters = extract_parameters(hasher.verified[0])
    assert (parameters.time_cost, parameters.memory_cost) == (1, 8)


async def test_hashes_of_other_parameters_are_outdated() -> None:
    """A change of parameters shows, so that the next login can hash anew."""
    old = await Passwords(cheap(8)).hash("correct horse")
    assert Passwords(cheap(16)).is_outdated(old)
    assert not Passwords(cheap(8)).is_outdated(old)


async def test_the_parameters_are_owasps() -> None:
    """argon2id, 19 MiB, two passes, one lane."""
    parameters = extract_parameters(await Passwords(owasp_hasher()).hash("correct horse"))
    assert (parameters.memory_cost, parameters.time_cost, parameters.parallelism) == (19 * 1024, 2, 1)
    assert parameters.type.name == "ID"


async def test_the_queue_is_bounded() -> None:
    """Beyond the cores and the queue a sign-in is refused at once as UNAVAILABLE; the others are served."""
    hasher = CountingHasher()
    passwords = Passwords(hasher, cores=1, waiting_max=2)
    stored = await passwords.hash("correct horse")
    hasher.gate.clear()
    results: list[bool] = []

    async def verify() -> None:
        results.append(await passwords.verify(stored, "correct horse"))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(verify)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(WhisprError) as caught:
            await passwords.verify(stored, "correct horse")
        hasher.gate.set()
    assert caught.value.code is Code.UNAVAILABLE
    assert results == [True] * 3

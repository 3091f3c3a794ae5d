"""Servers as child processes, for the interoperability tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.conformance.parties import NotToBeHadError

ROOT = Path(__file__).parents[2]

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a child with its output piped; all are ended with the test."""
    children: list[subprocess.Popen[str]] = []

    def begin(*command: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        children.append(child)
        return child

    yield begin
    for child in children:
        child.terminate()
    for child in children:
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stdout is not None:
            child.stdout.close()


@pytest.fixture
def our_server(start: Start) -> int:
    """The port of our interop server."""
    return printed_port(start(sys.executable, "-m", "tests.conformance.interop_server"))


def printed_port(child: subprocess.Popen[str]) -> int:
    """The port that a server prints as its first line."""
    assert child.stdout is not None
    return int(child.stdout.readline())


@pytest.fixture
def printed() -> Callable[[subprocess.Popen[str]], int]:
    return printed_port


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """A party that is not to be had skips its test, saying why."""
    try:
        return (yield)
    except NotToBeHadError as absent:
        pytest.skip(str(absent))

"""One running product for the integration tests that need nothing special of theirs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.product import UNLIMITED, Product, running


@pytest.fixture(scope="session")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """`whispr serve` with its own backends, on free ports, the rate limits lifted."""
    with running(tmp_path_factory.mktemp("product") / "data", UNLIMITED) as product:
        yield product

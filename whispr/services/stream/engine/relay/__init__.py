"""A live stream on the nodes that do not have its source: heard over the bus, served as if it were their own."""

from __future__ import annotations

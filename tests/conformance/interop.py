"""gRPC's interoperability tests on our runtime: what its client and its server share."""

from __future__ import annotations

import sys
import tempfile
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from whispr.rpc import generate

ECHO_INITIAL = "x-grpc-test-echo-initial"
ECHO_TRAILING = "x-grpc-test-echo-trailing-bin"
MESSAGE_BYTES_MAX = 4 * 1024 * 1024


@cache
def generated() -> Any:
    """Modules made of interop.proto: `.pb2` with the messages, `.grpc` with servicers and stubs."""
    with tempfile.TemporaryDirectory() as folder:
        generate.generate(Path(__file__).parent, ["interop.proto"], Path(folder))
        sys.path.insert(0, folder)
        try:
            return SimpleNamespace(pb2=import_module("interop_pb2"), grpc=import_module("interop_grpc"))
        finally:
            sys.path.remove(folder)

"""Memory of large messages."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource
from whispr.rpc.memory import keep_large_blocks

MIB = 1024 * 1024
keep_large_blocks({limit} * MIB)
def work():
    for _ in range(50):
        blocks = [bytearray(MIB), bytearray(2 * MIB), bytearray(MIB)]
        del blocks
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has to be taught")
@pytest.mark.parametrize("limit", [2, 4, 1024])
def test_memory_of_large_messages_is_used_again(limit: int) -> None:
    """A message after others like it finds memory that is there, not pages yet to be had (1,024 in 4 MiB)."""
    told = subprocess.run(
        [sys.executable, "-c", _FAULTS.format(limit=limit)], check=True, capture_output=True, text=True
    ).stdout
    assert int(told) < 50 * 100

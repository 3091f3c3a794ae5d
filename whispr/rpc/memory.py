"""Where the memory of large messages comes from.

glibc gives large blocks back to the system as soon as they are freed, and the next message gets its memory page
by page, each a fault: of 1 MiB messages that was a third of all the time. What counts as large it learns from
blocks it has seen freed (mallopt(3), M_MMAP_THRESHOLD), so it is shown one that is larger than any message.
The process then keeps a few messages' worth of memory for the next ones. Other allocators do not mind.
"""

from __future__ import annotations

import functools

_BLOCKS_OF_A_MESSAGE = 4
"""What one message takes while it is encoded or read, in messages: twice itself, in powers of two."""

_BLOCK_BYTES_MAX = 31 * 1024 * 1024
"""glibc learns from none over 32 MiB, with what Python and it put before one."""


@functools.cache
def keep_large_blocks(message_bytes_max: int) -> None:
    """Have memory for messages of up to so many bytes kept.

    Shown once in a process: that block comes from the system and is never touched. A second one would come out of
    what is kept by then, and be cleared, which takes 2 ms.
    """
    bytes(min(_BLOCKS_OF_A_MESSAGE * message_bytes_max, _BLOCK_BYTES_MAX))

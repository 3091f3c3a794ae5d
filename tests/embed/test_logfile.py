from __future__ import annotations

import os
import stat
from pathlib import Path

from whispr.embed.logfile import LEN_MAX, TAIL_LEN_MAX, LogFile


def test_a_log_is_appended_to_and_private(tmp_path: Path) -> None:
    """An earlier run's output is kept, and only we can read it."""
    for text in (b"one\n", b"two\n"):
        with LogFile(tmp_path / "x.log") as log:
            os.write(log.descriptor, text)
    assert (tmp_path / "x.log").read_bytes() == b"one\ntwo\n"
    assert stat.S_IMODE((tmp_path / "x.log").stat().st_mode) == 0o600


def test_the_tail_is_what_was_written_since_the_mark(tmp_path: Path) -> None:
    """An error quotes this start's output, not that of earlier ones, and not megabytes of it."""
    with LogFile(tmp_path / "x.log") as log:
        os.write(log.descriptor, b"old\n")
        log.mark()
        assert log.tail() == ""
        os.write(log.descriptor, b"new \xff\n")
        assert log.tail() == "new \ufffd"
        os.write(log.descriptor, b"x" * 10_000)
        assert len(log.tail()) == TAIL_LEN_MAX


def test_a_log_that_outgrows_its_bound_is_put_aside(tmp_path: Path) -> None:
    """At most two files of about the bound are kept; the writer goes on with the same descriptor."""
    with LogFile(tmp_path / "x.log") as log:
        os.write(log.descriptor, b"a" * LEN_MAX)
        log.bound()
        assert not (tmp_path / "x.log.1").exists()
        for letter in (b"b", b"c"):
            os.write(log.descriptor, letter * (LEN_MAX + 1))
            log.bound()
            assert (tmp_path / "x.log").stat().st_size == 0
            os.write(log.descriptor, b"go on\n")
            assert (tmp_path / "x.log").read_bytes() == b"go on\n"
        assert (tmp_path / "x.log.1").read_bytes() == b"go on\n" + b"c" * (LEN_MAX + 1)

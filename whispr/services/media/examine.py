"""Looks into a file: run as a child process of its own, for the file may be made to break whoever reads it.

    python -m whispr.services.media.examine <folder> <limits as JSON>

The folder holds `input`; what comes of it is written beside it: `result.json`, a file for each variant. The
child has no secrets in its environment, and is confined to that folder, to bounded memory, processor time and file
sizes, and to its parent's life (see `confine`). Being killed by one of those bounds is an answer too.

Pictures lose what they say beside the picture (see `strip`); one that has to be turned is turned and written
anew. Sound gets its length and the shape of its loudness, film its length and a poster.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from whispr.services.media import types
from whispr.services.media.confine import confine
from whispr.services.media.findings import Bounds, Refused, Result, blocks
from whispr.services.media.pictures import look_at_picture
from whispr.services.media.recordings import look_at_recording
from whispr.services.media.strip import Malformed
from whispr.services.media.types import HEAD_BYTES, OPAQUE, Kind, TypeFault

INPUT, RESULT = "input", "result.json"


def examine(folder: Path, declared: str, bounds: Bounds) -> Result:
    """Look into `folder/input`, declared as that type. Raises Refused."""
    path = folder / INPUT
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    try:
        types.check(declared, types.sniff(head))
        result = Result(declared, types.kind_of(declared).value)
        match types.kind_of(declared):
            case Kind.IMAGE:
                look_at_picture(path, result, bounds)
            case Kind.AUDIO | Kind.VIDEO:
                look_at_recording(path, result, bounds)
            case Kind.DOCUMENT:
                _document(path, declared)
                result.give("original", path, declared)
    except TypeFault as fault:
        raise Refused("content_type_mismatch", str(fault)) from None
    except Malformed as fault:
        raise Refused("unreadable", str(fault)) from None
    except MemoryError:
        raise Refused("too_complex", "it takes too much memory to look into") from None
    except Refused:
        raise
    except Exception as error:  # decoders raise anything at all on damaged files
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise Refused("unreadable", f"it cannot be read: {said}") from error
    return result


def _document(path: Path, declared: str) -> None:
    if declared == OPAQUE or not types.is_text(declared):
        return
    with path.open("rb") as file:
        first = True
        for block in blocks(file):
            if first and block[:2] in (b"\xff\xfe", b"\xfe\xff"):
                return  # UTF-16, in which every other byte may be a NUL
            first = False
            if b"\0" in block:
                raise TypeFault(f"declared as {declared}, but there are NULs in it, which no text has")


# The process


def main(arguments: list[str]) -> None:
    """Examine one file and write what came of it."""
    folder, given = Path(arguments[0]), json.loads(arguments[1])
    bounds = Bounds(**given["bounds"])
    parent = given["parent"]
    confine(folder, bounds)
    if os.getppid() != parent:
        return  # It ended before it could take us with it.
    try:
        answer = {"result": asdict(examine(folder, given["declared"], bounds))}
    except Refused as refused:
        answer = {"refused": {"reason": refused.reason, "message": refused.message}}
    (folder / RESULT).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1:])

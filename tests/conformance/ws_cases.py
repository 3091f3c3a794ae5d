"""WebSocket conformance cases with the numbers of Autobahn's fuzzing client (sections 1 to 7, 9 and 10).

A case says what a client sends, in pieces as it should arrive, and what an echo server must answer: the messages and
pongs, in order, and then how the connection ends. `RFC 6455` is the reference throughout.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

TEXT, BINARY, CLOSE, PING, PONG, CONTINUATION = 1, 2, 8, 9, 10, 0
MASK = b"\x9d\x13\x5f\xa1"
OPEN = 0
"""The connection goes on, until the client closes it with 1000."""


@dataclass(frozen=True)
class Case:
    """One exchange."""

    number: str
    what: str
    sends: tuple[bytes, ...]
    expects: tuple[str | bytes | tuple[str, bytes], ...] = ()
    ends: int = OPEN
    """Code of the server's close frame, 1005 for one without; OPEN when it is the client who closes."""
    chop: int = 0
    """Bytes a write; 0 for each of `sends` in one."""


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0) -> bytes:
    """A masked frame, however wrong."""
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", first, 0x80 | size)
    elif size < 65536:
        head = struct.pack("!BBH", first, 0xFE, size)
    else:
        head = struct.pack("!BBQ", first, 0xFF, size)
    key = (MASK * (size // 4 + 1))[:size]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")
    return head + MASK + masked.to_bytes(size, "big")


def text(said: str) -> bytes:
    """A text message in one frame."""
    return frame(TEXT, said.encode())


def close(code: int | None = 1000, reason: bytes = b"") -> bytes:
    """A close frame."""
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason)


def fragments(opcode: int, payload: bytes, size: int) -> bytes:
    """A message in frames of this size."""
    parts = [payload[at : at + size] for at in range(0, len(payload), size)]
    frames = [
        frame(CONTINUATION if n else opcode, part, fin=n == len(parts) - 1) for n, part in enumerate(parts)
    ]
    return b"".join(frames)


def cases() -> list[Case]:
    """All of them."""
    groups = (framing, pings, reserved_bits, opcodes, fragmentation, utf8, closing, close_codes, large)
    return [case for group in groups for case in group()]


def framing() -> Iterator[Case]:
    """Section 1: lengths in each of their forms."""
    sizes = (0, 125, 126, 127, 128, 65535, 65536)
    for section, opcode in ((1, TEXT), (2, BINARY)):
        for n, size in enumerate(sizes, 1):
            said: str | bytes = "*" * size if opcode == TEXT else b"\xfe" * size
            payload = said.encode() if isinstance(said, str) else said
            yield Case(f"1.{section}.{n}", f"{size} bytes", (frame(opcode, payload),), (said,))
        whole = "*" * 65536 if opcode == TEXT else b"\xfe" * 65536
        payload = whole.encode() if isinstance(whole, str) else whole
        yield Case(f"1.{section}.8", "65536 bytes in chops", (frame(opcode, payload),), (whole,), chop=997)


def pings() -> Iterator[Case]:
    """Section 2. Each ping is answered, though of several at once only the latest need be (5.5.3)."""
    for n, payload in enumerate(
        (b"", b"Hello, world!", b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff", b"\xfe" * 125), 1
    ):
        yield Case(f"2.{n}", "a ping", (frame(PING, payload),), (("pong", payload),))
    yield Case("2.5", "a ping of 126 bytes", (frame(PING, b"\xfe" * 126),), ends=1002)
    yield Case("2.6", "a ping in octets", (frame(PING, b"\xfe" * 125),), (("pong", b"\xfe" * 125),), chop=1)
    yield Case("2.7", "a pong nobody asked for", (frame(PONG), text("on")), ("on",))
    yield Case("2.8", "a pong with payload", (frame(PONG, b"unsolicited"), text("on")), ("on",))
    both = (frame(PONG, b"unsolicited"), frame(PING, b"ping"))
    yield Case("2.9", "a pong, then a ping", both, (("pong", b"ping"),))
    ten = tuple(frame(PING, bytes((48 + n,))) for n in range(10))
    pongs = tuple(("pong", bytes((48 + n,))) for n in range(10))
    yield Case("2.10", "ten pings at once", (b"".join(ten),), pongs)
    yield Case("2.11", "ten pings, in octets", ten, pongs, chop=1)


def reserved_bits() -> Iterator[Case]:
    """Section 3: reserved bits that no extension gives a meaning."""
    yield Case("3.1", "RSV 1", (frame(TEXT, b"Hello", rsv=1),), ends=1002)
    bad, good, ping = frame(TEXT, b"no", rsv=2), text("first"), frame(PING)
    yield Case("3.2", "a message, then RSV 2, then a ping", (good + bad + ping,), ("first",), 1002)
    bad = frame(TEXT, b"no", rsv=3)
    yield Case("3.3", "the same with RSV 3, frame by frame", (good, bad, ping), ("first",), 1002)
    bad = frame(TEXT, b"no", rsv=4)
    yield Case("3.4", "the same with RSV 4, in octets", (good, bad, ping), ("first",), 1002, chop=1)
    yield Case("3.5", "binary with RSV 5", (frame(BINARY, b"\x00\xff", rsv=5),), ends=1002)
    yield Case("3.6", "a ping with RSV 6", (frame(PING, b"x", rsv=6),), ends=1002)
    yield Case("3.7", "a close with RSV 7", (frame(CLOSE, rsv=7),), ends=1002)


def opcodes() -> Iterator[Case]:
    """Section 4: reserved opcodes."""
    for section, first in ((1, 3), (2, 11)):
        for n in range(5):
            payload = b"" if n in (0, 2) else b"reserved"
            before = (text("first"),) if n >= 2 else ()
            sends = (*before, frame(first + n, payload), frame(PING))
            expects = ("first",) if before else ()
            yield Case(f"4.{section}.{n + 1}", f"opcode {first + n}", sends, expects, 1002, chop=int(n == 4))


def fragmentation() -> Iterator[Case]:
    """Section 5."""
    one, two = frame(TEXT, b"frag1", fin=False), frame(CONTINUATION, b"frag2")
    more, ping = frame(CONTINUATION, b"frag2", fin=False), frame(PING, b"ping")
    pong, whole = ("pong", b"ping"), "frag1frag2"
    yield Case("5.1", "a ping in two fragments", (frame(PING, b"a", fin=False) + two,), ends=1002)
    yield Case("5.2", "a pong in two fragments", (frame(PONG, b"a", fin=False) + two,), ends=1002)
    yield Case("5.3", "text in two fragments", (one, two), (whole,))
    yield Case("5.4", "the same at once", (one + two,), (whole,))
    yield Case("5.5", "the same in octets", (one, two), (whole,), chop=1)
    yield Case("5.6", "a ping between", (one, ping, two), (pong, whole))
    yield Case("5.7", "a ping between, at once", (one + ping + two,), (pong, whole))
    yield Case("5.8", "a ping between, in octets", (one, ping, two), (pong, whole), chop=1)
    for n, chop in ((9, 0), (10, 0), (11, 1)):
        yield Case(f"5.{n}", "a continuation of nothing", (two, text("x")), ends=1002, chop=chop)
    for n, chop in ((12, 0), (13, 0), (14, 1)):
        yield Case(f"5.{n}", "one of nothing, not the last", (more, text("x")), ends=1002, chop=chop)
    yield Case("5.15", "text, then a continuation of nothing", (one + two, more, text("x")), (whole,), 1002)
    for n in (16, 17):
        yield Case(f"5.{n}", "continuation, text, continuation", (more, one, two), ends=1002)
    yield Case("5.18", "text in text", (one, frame(TEXT, b"frag2")), ends=1002)
    five = (one, more, ping, more, more, ping, frame(CONTINUATION, b"end"))
    expects = (pong, pong, "frag1" + "frag2" * 3 + "end")
    yield Case("5.19", "five fragments, pings between", five, expects)
    yield Case("5.20", "the same in octets", five, expects, chop=1)


KOSME = "κόσμε"  # Greek, on purpose


def utf8() -> Iterator[Case]:
    """Section 6. Invalid text is found when its message is whole; Autobahn calls that non-strict for 6.4."""
    yield Case("6.1.1", "empty text", (frame(TEXT),), ("",))
    empty = frame(TEXT, fin=False) + frame(CONTINUATION, fin=False) + frame(CONTINUATION)
    yield Case("6.1.2", "three empty fragments", (empty,), ("",))
    middle = frame(TEXT, fin=False) + frame(CONTINUATION, b"middle", fin=False) + frame(CONTINUATION)
    yield Case("6.1.3", "text between empty fragments", (middle,), ("middle",))
    said = f"Hello-µ@ßöäüàá-{KOSME}!!"
    yield Case("6.2.1", "valid text", (text(said),), (said,))
    half = len(said.encode()) // 2 | 1
    yield Case("6.2.2", "in two fragments", (fragments(TEXT, said.encode(), half),), (said,))
    yield Case("6.2.3", "in fragments of an octet", (fragments(TEXT, said.encode(), 1),), (said,))
    yield Case("6.2.4", "the same for Greek", (fragments(TEXT, KOSME.encode(), 1),), (KOSME,))
    bad = KOSME.encode() + b"\xed\xa0\x80edited"
    yield Case("6.3.1", "a surrogate", (frame(TEXT, bad),), ends=1007)
    yield Case("6.3.2", "a surrogate, in fragments of an octet", (fragments(TEXT, bad, 1),), ends=1007)
    bad = KOSME.encode() + b"\xf4\x90\x80\x80edited"
    for n, size in enumerate((12, 12, 13, 14), 1):
        sends = (fragments(TEXT, bad, size),)
        yield Case(f"6.4.{n}", "past U+10FFFF, in fragments", sends, ends=1007, chop=int(n > 2))
    for number, good in valid_sequences():
        yield Case(number, f"valid {good.encode()[:8].hex()}", (text(good),), (good,))
    for number, octets in invalid_sequences():
        yield Case(number, f"invalid {octets[:8].hex()}", (frame(TEXT, octets),), ends=1007)


def valid_sequences() -> Iterator[tuple[str, str]]:
    """Sections 6.5, 6.7, 6.9, 6.11, 6.22 and 6.23: what must be taken."""
    for n in range(1, 6):
        yield f"6.5.{n}", KOSME[:n]
    for section, points in (
        (7, (0x7F, 0x7FF, 0xFFFF, 0x10FFFF)),
        (9, (0x0, 0x80, 0x800, 0x10000)),
        (11, (0xD7FF, 0xE000, 0xFFFD, 0x10FFFE)),
        (22, [plane << 16 | low for plane in range(17) for low in (0xFFFE, 0xFFFF)]),
        (23, range(0xFFF9, 0x10000)),
    ):
        for n, point in enumerate(points, 1):
            yield f"6.{section}.{n}", chr(point)


def invalid_sequences() -> Iterator[tuple[str, bytes]]:
    """Sections 6.6, 6.8, 6.10 and 6.12 to 6.21: what must be refused (Kuhn's decoder stress test)."""
    whole = KOSME.encode()
    cut = [whole[:n] for n in range(1, len(whole)) if not _is_text(whole[:n])]
    overlong = ["c0af", "e080af", "f08080af", "f8808080af", "fc80808080af", "c1bf", "e09fbf", "f08fbfbf"]
    overlong += ["f887bfbfbf", "fc83bfbfbfbf", "c080", "e08080", "f0808080", "f880808080", "fc8080808080"]
    surrogates = ["eda080", "edadbf", "edae80", "edafbf", "edb080", "edbe80", "edbfbf"]
    pairs = [high + low for high in ("eda080", "edadbf", "edae80", "edafbf") for low in ("edb080", "edbfbf")]
    for section, sequences in (
        (6, cut),
        (8, [bytes.fromhex(each) for each in ("f888808080", "fc8480808080")]),
        (10, [bytes.fromhex(each) for each in ("f7bfbfbf", "fbbfbfbfbf", "fdbfbfbfbfbf")]),
        (12, [bytes.fromhex(each) for each in ("f4908080", "f8", "fc")]),
        (
            14,
            [
                b"\x80",
                b"\xbf",
                *(b"\x80\xbf" * (n // 2) + b"\x80" * (n % 2) for n in range(2, 8)),
                bytes(range(0x80, 0xC0)),
            ],
        ),
        (
            15,
            [
                b"".join(bytes((each, 0x20)) for each in span)
                for span in (
                    range(0xC0, 0xE0),
                    range(0xE0, 0xF0),
                    range(0xF0, 0xF8),
                    range(0xF8, 0xFC),
                    range(0xFC, 0xFE),
                )
            ],
        ),
        (
            16,
            [
                bytes.fromhex(each)
                for each in (
                    "c0",
                    "e080",
                    "f08080",
                    "f8808080",
                    "fc80808080",
                    "df",
                    "efbf",
                    "f7bfbf",
                    "fbbfbfbf",
                    "fdbfbfbfbf",
                )
            ],
        ),
        (18, [b"\xfe", b"\xff", b"\xfe\xfe\xff\xff"]),
        (19, [bytes.fromhex(each) for each in overlong]),
        (20, [bytes.fromhex(each) for each in surrogates]),
        (21, [bytes.fromhex(each) for each in pairs]),
    ):
        for n, octets in enumerate(sequences, 1):
            yield f"6.{section}.{n}", octets


def _is_text(octets: bytes) -> bool:
    try:
        octets.decode()
    except UnicodeDecodeError:
        return False
    return True


def closing() -> Iterator[Case]:
    """Section 7.1 to 7.5: how a connection ends."""
    yield Case("7.1.1", "a message, then close", (text("Hello World!"), close()), ("Hello World!",), 1000)
    yield Case("7.1.2", "two close frames", (close() + close(),), ends=1000)
    yield Case("7.1.3", "a ping after close", (close() + frame(PING),), ends=1000)
    yield Case("7.1.4", "text after close", (close() + text("Hello World!"),), ends=1000)
    late = frame(TEXT, b"fragment1", fin=False) + close() + frame(CONTINUATION, b"fragment2")
    yield Case("7.1.5", "close between fragments", (late,), ends=1000)
    big = "BAsd7&jh23" * 26214
    yield Case("7.1.6", "256K, close, ping", (text(big) + close() + frame(PING),), (big,), 1000)
    yield Case("7.3.1", "close without a code", (close(None),), ends=1000)
    yield Case("7.3.2", "close with half a code", (frame(CLOSE, b"a"),), ends=1002)
    yield Case("7.3.3", "close with a code", (close(),), ends=1000)
    yield Case("7.3.4", "close with a reason", (close(1000, b"Hello World!"),), ends=1000)
    yield Case("7.3.5", "close with the longest reason", (close(1000, b"*" * 123),), ends=1000)
    yield Case("7.3.6", "close with too long a reason", (close(1000, b"*" * 124),), ends=1002)
    yield Case(
        "7.5.1",
        "close with a reason that is no text",
        (close(1000, b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80"),),
        ends=1007,
    )


def close_codes() -> Iterator[Case]:
    """Section 7.7, codes that may be sent, and 7.9 and 7.13, those that may not."""
    for n, code in enumerate(
        (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999), 1
    ):
        yield Case(f"7.7.{n}", f"code {code}", (close(code),), ends=code)
    for n, code in enumerate((0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999), 1):
        yield Case(f"7.9.{n}", f"code {code}", (close(code),), ends=1002)
    for n, code in enumerate((5000, 65535), 1):
        yield Case(f"7.13.{n}", f"code {code}", (close(code),), ends=1002)


def large() -> Iterator[Case]:
    """Section 9: sizes, fragments, chops, and many messages."""
    for section, opcode in ((1, TEXT), (2, BINARY)):
        for n, size in enumerate((65536, 256 << 10, 1 << 20, 4 << 20, 8 << 20, 16 << 20), 1):
            said: str | bytes = "*" * size if opcode == TEXT else b"\xfe" * size
            payload = b"*" * size if opcode == TEXT else b"\xfe" * size
            yield Case(f"9.{section}.{n}", f"{size} bytes", (frame(opcode, payload),), (said,))
    for section, opcode in ((3, TEXT), (4, BINARY)):
        said = "*" * (4 << 20) if opcode == TEXT else b"*" * (4 << 20)
        for n, power in enumerate(range(6, 23, 2), 1):
            yield Case(
                f"9.{section}.{n}",
                f"4M in fragments of {1 << power}",
                (fragments(opcode, b"*" * (4 << 20), 1 << power),),
                (said,),
            )
    for section, opcode in ((5, TEXT), (6, BINARY)):
        said = "*" * (1 << 20) if opcode == TEXT else b"*" * (1 << 20)
        for n, size in enumerate((64, 128, 256, 512, 1024, 2048), 1):
            yield Case(
                f"9.{section}.{n}",
                f"1M in chops of {size}",
                (frame(opcode, b"*" * (1 << 20)),),
                (said,),
                chop=size,
            )
    whole = "*" * 65536
    yield Case(
        "10.1.1", "65536 bytes in fragments of 1300", (fragments(TEXT, whole.encode(), 1300),), (whole,)
    )
    for section, opcode in ((7, TEXT), (8, BINARY)):
        for n, size in enumerate((0, 16, 64, 256, 1024, 4096), 1):
            said = "*" * size if opcode == TEXT else b"*" * size
            yield Case(
                f"9.{section}.{n}",
                f"1000 messages of {size}",
                (frame(opcode, b"*" * size) * 1000,),
                (said,) * 1000,
            )

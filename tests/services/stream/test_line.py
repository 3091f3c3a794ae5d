"""What a source sends, on the stream's clock."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tests.services.stream.sounds import opus_packets
from whispr.audio.opus import PACKET, SILENCE, Toc, pack
from whispr.services.stream.engine.line import LATE_MAX, PCM_BYTES, PENDING_MAX, Kind, Line, Piece

LONG = bytes([Toc(3, stereo=False).byte(0)]) + bytes(50)
"""One frame of 60 ms."""


def kinds(pieces: list[Piece]) -> str:
    return "".join(piece.kind.name[0] if piece.kind is not Kind.LONG_OPUS else "o" for piece in pieces)


def connected(stall_s: float = 0.3) -> Line:
    line = Line(0.0)
    line.connect(0.0, stall_s)
    return line


def test_packets_in_order_follow_each_other() -> None:
    """Each packet takes its 20 ms, in the source's own time."""
    line = connected()
    for number in range(5):
        line.opus(SILENCE, number * 0.02, 7000 + number * PACKET)
    assert [(piece.pts, piece.kind) for piece in line.take()] == [(n * PACKET, Kind.OPUS) for n in range(5)]
    assert line.head == 5 * PACKET
    assert line.take() == []


def test_what_is_missing_is_concealed_and_counted() -> None:
    """Lost packets have their place; those that a source did not send, in a pause of speech, are not loss."""
    line = connected()
    line.opus(SILENCE, 0.0, 0)
    line.opus(SILENCE, 0.1, 3 * PACKET, lost=2)
    line.opus(SILENCE, 0.3, 8 * PACKET)
    assert kinds(line.take()) == "OLLOLLLLO"
    assert line.lost == 2


def test_other_lengths_become_20_ms() -> None:
    """Packets of 60 ms are cut, of 10 ms put together; one long frame keeps its length."""
    line = connected()
    toc = Toc(31, stereo=True)
    line.opus(pack(toc, [b"a", b"b", b"c"]), 0.0)
    short = Toc(30, stereo=True)
    line.opus(pack(short, [b"1"]), 0.06)
    assert line.head == 3 * PACKET
    line.opus(pack(short, [b"2"]), 0.07)
    line.opus(LONG, 0.08)
    pieces = line.take()
    assert kinds(pieces) == "OOOOo"
    assert [piece.pts // PACKET for piece in pieces] == [0, 1, 2, 3, 4]
    assert line.head == 7 * PACKET


def test_what_is_no_packet_counts_as_lost() -> None:
    """A source's nonsense costs its own 20 ms."""
    line = connected()
    line.opus(b"", 0.0)
    line.opus(b"\x03", 0.02)
    assert kinds(line.take()) == "LL"
    assert line.lost == 2


def test_a_stall_is_filled_at_our_pace_and_what_comes_late_is_dropped() -> None:
    """Listeners go on; packets of a time that has been filled in are not heard, those after it in their place."""
    line = connected()
    line.opus(SILENCE, 0.0, 0)
    line.take()
    for tick in range(1, 11):
        line.tick(tick / 10)
    filled = line.head // PACKET - 1
    assert 32 <= filled <= 35
    assert line.lost == filled
    line.take()
    for number in range(1, 60):
        line.opus(SILENCE, 1.0, number * PACKET)
    assert kinds(line.take()) == "O" * (59 - filled)
    assert line.head == 60 * PACKET


def test_a_source_that_stays_late_is_heard_again() -> None:
    """When the way has become longer for good, the source's time is shifted rather than all of it dropped."""
    line = connected()
    line.opus(SILENCE, 0.0, 0)
    for tick in range(1, 41):
        line.tick(tick / 10)
    line.take()
    for number in range(1, LATE_MAX + 11):
        line.opus(SILENCE, 4.0 + number * 0.02, number * PACKET)
    assert kinds(line.take()) == "O" * 10


def test_a_burst_after_a_stall_over_tcp_does_not_make_listeners_lag() -> None:
    """As much as was filled in is dropped of what the stall held up."""
    line = connected(1.0)
    now = 0.0
    for _ in range(50):
        line.pcm(bytes(PCM_BYTES), now)
        now += 0.02
    line.tick(now)
    for tick in range(30):
        line.tick(now + tick / 10)
    now += 3.0
    line.take()
    for _ in range(150):
        line.pcm(bytes(PCM_BYTES), now)
    line.tick(now)
    assert abs(line.lead(now)) <= 1.1 * 48_000
    for _ in range(50):
        line.pcm(bytes(PCM_BYTES), now)
        now += 0.02
    assert kinds(line.take()).count("P") >= 50
    assert line.lead(now) <= PACKET


def test_silence_without_a_source_and_during_a_pause() -> None:
    """A stream whose source is away, or that is paused, goes on in silence by our clock."""
    line = connected()
    line.opus(SILENCE, 0.0, 0)
    line.disconnect()
    for tick in range(1, 21):
        line.tick(tick / 10)
    assert kinds(line.take()) == "O" + "S" * 94
    line.connect(2.0, 0.3)
    line.paused = True
    line.opus(SILENCE, 2.0, 5)
    line.opus(LONG, 2.02)
    assert kinds(line.take()) == "SSSS"
    line.paused = False
    line.opus(SILENCE, 2.08)
    assert kinds(line.take()) == "O"


def test_a_reconnected_source_goes_on_where_the_silence_has_come_to() -> None:
    """Another source has other timestamps; the stream's clock does not care."""
    line = connected()
    for number in range(10):
        line.opus(SILENCE, number * 0.02, number * PACKET)
    line.disconnect()
    line.tick(1.0)
    head = line.head
    line.connect(1.0, 0.3)
    line.opus(SILENCE, 1.0, 99_000_000)
    assert line.head == head + PACKET


def test_timestamps_that_jump_begin_anew() -> None:
    """A source that jumps by more than 10 s has begun anew; no minutes of silence are made of it."""
    line = connected()
    line.opus(SILENCE, 0.0, 0)
    line.opus(SILENCE, 0.02, 48_000 * 3600)
    line.opus(SILENCE, 0.04, 48_000 * 3600 + PACKET)
    assert kinds(line.take()) == "OOO"


def test_a_source_faster_than_heard_is_told_to_wait() -> None:
    """Whoever reads a file that comes at once is held up past half a second."""
    line = connected(1.0)
    line.pcm(bytes(PCM_BYTES * 50), 0.0)
    assert line.ahead_s(0.0, 0.5) == 0.5
    assert line.ahead_s(0.6, 0.5) == 0.0


def test_our_clock_follows_the_sources() -> None:
    """A source whose quartz is 300 ppm off is neither filled nor held up, for ten minutes."""
    for ppm in (-300, 300):
        line = connected(1.0)
        step = 0.02 * (1 + ppm / 1e6)
        now, ticked = 0.0, 0.0
        for _ in range(600 * 50):
            now += step
            line.pcm(bytes(PCM_BYTES), now)
            if now - ticked >= 0.1:
                line.tick(now)
                line.take()
                ticked = now
        assert abs(line.lead(now)) < 0.1 * 48_000
        assert line.lost == 0


def test_too_slow_a_machine_leaves_out_the_oldest() -> None:
    """What waits to be encoded is bounded."""
    line = connected()
    for number in range(PENDING_MAX + 50):
        line.opus(SILENCE, number * 0.02, number * PACKET)
    pieces = line.take()
    assert len(pieces) == PENDING_MAX // 3
    assert pieces[-1].pts + PACKET == line.head
    assert line.left_out == PENDING_MAX + 50 - PENDING_MAX // 3


ACTS = st.lists(
    st.tuples(
        st.sampled_from(["opus", "long", "junk", "pcm", "tick", "connect", "disconnect", "pause"]),
        st.floats(0, 0.5),
        st.integers(0, 20_000),
    ),
    max_size=60,
)


@given(ACTS)
def test_the_line_has_no_holes_and_never_goes_back(acts: list[tuple[str, float, int]]) -> None:
    """Whatever a source does, and whenever, each piece begins where the one before ended."""
    line, now, stamp = Line(0.0), 0.0, 0
    taken: list[Piece] = []
    for act, passed, number in acts:
        now += passed
        if act == "tick":
            line.tick(now)
            taken += line.take()
        elif act == "connect":
            line.connect(now, 0.3)
        elif act == "disconnect":
            line.disconnect()
        elif act == "pause":
            line.paused = not line.paused
        elif act == "pcm":
            line.pcm(bytes(number), now)
        else:
            stamp += number
            data = {"opus": SILENCE, "long": LONG, "junk": b"\x03"}[act]
            line.opus(data, now, stamp if number % 3 else None, number % 5)
    taken += line.take()
    for before, after in itertools.pairwise(taken):
        assert after.pts == before.pts + before.ticks
    assert not taken or line.head == taken[-1].pts + taken[-1].ticks
    assert all(piece.ticks % PACKET == 0 for piece in taken)


def test_real_packets_pass() -> None:
    """An encoder's packets are taken as they are."""
    line = connected()
    packets = opus_packets(0.2)
    for number, packet in enumerate(packets):
        line.opus(packet, number * 0.02, number * PACKET)
    assert [piece.data for piece in line.take()] == list(packets)

"""What a source sends, on the stream's clock."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.services.stream.sounds import opus_packets
from whispr.audio.opus import PACKET, SILENCE, Toc, pack
from whispr.audio.packets import CLOCK_HZ
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


def paced() -> Line:
    line = connected()
    line.pace(0.0, 3.0)
    return line


def run(line: Line, start: float, end: float, arrivals: dict[float, int]) -> tuple[str, float]:
    """Tick from one time to another, with so many pieces at times; returns what came out."""
    taken: list[Piece] = []
    for tick in range(round(start * 10) + 1, round(end * 10) + 1):
        for _ in range(arrivals.get(tick / 10, 0)):
            line.pcm(bytes(PCM_BYTES), tick / 10)
        line.tick(tick / 10)
        taken += line.take()
    return kinds(taken), end


def test_bursts_come_out_evenly() -> None:
    """FFmpeg sends Ogg a second at a time; what comes out is heard steadily all the same."""
    line = paced()
    outputs = []
    for second in range(8):
        for tenth in range(10):
            now = second + tenth / 10
            if tenth == (second * 7) % 3:
                for _ in range(50):
                    line.pcm(bytes(PCM_BYTES), now)
            line.tick(now)
            outputs.append(len(line.take()))
    assert max(outputs[20:]) <= 6
    assert min(outputs[20:]) >= 4
    assert line.lost == 0


@pytest.mark.parametrize("head_start", [0, 50])
def test_a_head_start_does_not_last(head_start: int) -> None:
    """What a source is ahead at first is let out, but for a margin, and nothing ever runs dry."""
    line, now = paced(), 0.0
    for _ in range(head_start):
        line.pcm(bytes(PCM_BYTES), now)
    outputs = []
    for number in range(30 * 50):
        now = number * 0.02
        line.pcm(bytes(PCM_BYTES), now)
        if number % 5 == 4:
            line.tick(now)
            outputs.append(len(line.take()))
    assert 0.1 < (line.received - line.head) / CLOCK_HZ < 0.3
    assert min(outputs[5:]) >= 4
    assert max(outputs[5:]) <= 6


def test_a_burst_after_a_stall_over_tcp_does_not_make_listeners_lag() -> None:
    """As much as was filled in is dropped of what the stall held up."""
    line = paced()
    steady = {tick / 10: 5 for tick in range(1, 21)}
    heard, _ = run(line, 0.0, 2.0, steady)
    assert heard == "P" * len(heard)
    heard, _ = run(line, 2.0, 8.0, {})
    filled = heard.count("L")
    assert 140 <= filled <= 160
    burst = {8.1: 305} | {tick / 10: 5 for tick in range(82, 101)}
    heard, _ = run(line, 8.0, 10.0, burst)
    assert 90 <= heard.count("P") <= 105
    assert line.ahead_s(10.0, 0.0) < 3.6


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


def test_timestamps_that_jump_without_end_fill_no_more_than_one_jump() -> None:
    """What a source leaves out may be ten seconds; not ten for each of its packets."""
    line = connected()
    for number in range(200):
        line.opus(SILENCE, 0.0, number * 48_000 * 9)
    assert line.head <= 48_000 * 10 + 200 * PACKET


def test_a_source_faster_than_heard_is_told_to_wait() -> None:
    """Whoever reads a file that comes at once is held up past what may wait."""
    line = paced()
    for _ in range(200):
        line.pcm(bytes(PCM_BYTES), 0.0)
    assert round(line.ahead_s(0.0, 2.0), 3) == 2.3
    line.tick(2.5)
    assert line.ahead_s(2.5, 2.0) < 0.001


@pytest.mark.parametrize("ppm", [-300, 300])
@pytest.mark.parametrize("container", [True, False])
def test_our_clock_follows_the_sources(ppm: int, container: bool) -> None:
    """A source whose quartz is 300 ppm off is not filled, and does not pile up, for ten minutes."""
    line = paced() if container else connected(1.0)
    step = 0.02 * (1 + ppm / 1e6)
    now, ticked, least = 0.0, 0.0, 1.0
    for _ in range(600 * 50):
        now += step
        line.pcm(bytes(PCM_BYTES), now)
        if now - ticked >= 0.1:
            line.tick(now)
            least = min(least, len(line.take()) or 1.0)
            ticked = now
    assert line.ahead_s(now, 0.6) == 0
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
        st.sampled_from(["opus", "long", "junk", "pcm", "tick", "connect", "disconnect", "pause", "pace"]),
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
        elif act == "pace":
            line.pace(now, 1.0)
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

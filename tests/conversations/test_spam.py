"""What looks like spam, and what follows from it."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from whispr.conversations import spam
from whispr.conversations.spam import Score, Scores, Signal, SpamRules, Step

RULES = SpamRules()
MESSAGES = st.lists(
    st.tuples(
        st.sampled_from([b"hello", b"other", b"@a @b @c @d @e @f @g", b"http://x " * 4, b"\x00\xff" * 20]),
        st.floats(0, 20),
    ),
    max_size=60,
)


def write(messages: list[tuple[bytes, float]], rules: SpamRules = RULES) -> tuple[Score, list[Signal]]:
    """Score messages, each after its pause; return the score and the verdicts."""
    now, score, verdicts = 0.0, Score(0.0), []
    for content, pause_s in messages:
        now += pause_s
        if (verdict := spam.add(score, content, now, rules)) is not None:
            verdicts.append(verdict)
    return score, verdicts


@given(MESSAGES)
def test_scores_stay_within_bounds(messages: list[tuple[bytes, float]]) -> None:
    """A score is never negative, never stays at the limit, and remembers a bounded past."""
    score, _ = write(messages)
    assert 0 <= score.points < RULES.limit
    assert len(score.recent) <= RULES.remembered


@given(MESSAGES, st.floats(1, 30))
def test_slower_is_never_worse(messages: list[tuple[bytes, float]], more_s: float) -> None:
    """The same messages with longer pauses never reach the limit where the quicker ones did not."""
    _, quick = write(messages)
    _, slow = write([(content, pause_s + more_s) for content, pause_s in messages])
    assert len(slow) <= len(quick)


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=200, unique=True))
def test_steady_chat_is_no_spam(numbers: list[int]) -> None:
    """Whoever says something new once a second, for however long, is never sanctioned."""
    _, verdicts = write([(str(number).encode(), RULES.leak_per_s) for number in numbers])
    assert verdicts == []


@given(st.integers(0, 100))
def test_points_leak_away(silence_s: int) -> None:
    """Silence costs points at the rate of the leak, down to none."""
    score = Score(0.0)
    for number in range(10):
        spam.add(score, str(number).encode(), 0.0, RULES)
    spam.leak(score, float(silence_s), RULES)
    assert score.points == max(0, 10 - silence_s)


def test_what_it_was_is_said() -> None:
    """Each kind of spam is known by its own signal."""
    assert write([(str(n).encode(), 0.0) for n in range(40)])[1] == [Signal.RATE]
    assert write([(b"buy now", 0.1)] * 8)[1][0] is Signal.REPETITION
    assert write([(b"@everybody " * 20 + str(n).encode(), 1.0) for n in range(4)])[1][0] is Signal.MENTIONS
    assert write([(f"https://x.y/{n} ".encode() * 9, 1.0) for n in range(4)])[1][0] is Signal.LINKS


def test_plain_words_are_no_signals() -> None:
    """Addresses, a few links, a few mentions and short words cost no more than any message."""
    for content in (b"mail me: a@b.c", b"see http://a and www.b.c", b"@a @b @c", b"www", b"aww. @", b""):
        assert spam.weigh(content, (), RULES) == {Signal.RATE: RULES.rate}


def test_several_processes_add_up() -> None:
    """A total that another process brought to the limit makes this one's next look the verdict, once."""
    score = Score(0.0)
    spam.add(score, b"one", 0.0, RULES)
    assert spam.raise_to(score, RULES.limit - 1, 0.0, RULES) is None
    assert spam.raise_to(score, RULES.limit, 0.0, RULES) is Signal.RATE
    assert score.points == 0


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz")), max_size=50))
def test_scores_are_bounded_and_the_longest_silent_go(keys: list[tuple[str, str]]) -> None:
    """No more scores are kept than allowed, and the latest are among them."""
    scores = Scores(RULES, scores_max=3)
    for room_id, user_id in keys:
        latest = scores.of(room_id, user_id, 0.0)
        assert len(scores) <= 3
        assert scores.of(room_id, user_id, 0.0) is latest


@given(st.integers(0, 20), st.booleans())
def test_the_ladder_only_goes_up(earlier: int, bans: bool) -> None:
    """Each sanction is at least as hard as the one before; only where allowed does the machine ban."""
    hardness = {Step.WARN: 0, Step.MUTE: 1, Step.PROPOSE_BAN: 2, Step.BAN: 3}
    one, next_one = spam.next_sanction(earlier, bans=bans), spam.next_sanction(earlier + 1, bans=bans)
    assert hardness[one.step] <= hardness[next_one.step]
    if one.step is next_one.step is Step.MUTE:
        assert one.lasts is not None
        assert next_one.lasts is not None
        assert one.lasts < next_one.lasts
    if not bans:
        assert one.step is not Step.BAN


def test_the_ladder() -> None:
    """A warning, five minutes, an hour, then a ban or the proposal of one."""
    steps = [(s.step, s.lasts) for s in (spam.next_sanction(n, bans=True) for n in range(4))]
    assert steps == [
        (Step.WARN, None),
        (Step.MUTE, timedelta(minutes=5)),
        (Step.MUTE, timedelta(hours=1)),
        (Step.BAN, timedelta(days=1)),
    ]
    assert spam.next_sanction(3, bans=False).step is Step.PROPOSE_BAN

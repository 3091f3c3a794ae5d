"""The presence tracker: a client that applies every diff knows exactly who is there."""

from __future__ import annotations

import copy

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from whispr.realtime.presence import Diff, Presence, State
from whispr.realtime.replication import Tracker

Entry = tuple[str, str, str]


def phoenix_sync_diff(state: State, diff: Diff) -> None:
    """Apply a diff as phoenix.js's `Presence.syncDiff` does."""
    for key, joined in copy.deepcopy(diff["joins"]).items():
        refs = [meta["phx_ref"] for meta in joined["metas"]]
        kept = [meta for meta in state.get(key, {"metas": []})["metas"] if meta["phx_ref"] not in refs]
        state[key] = {"metas": kept + joined["metas"]}
    for key, left in diff["leaves"].items():
        if key in state:
            gone = [meta["phx_ref"] for meta in left["metas"]]
            state[key]["metas"] = [m for m in state[key]["metas"] if m["phx_ref"] not in gone]
            if not state[key]["metas"]:
                del state[key]


def by_ref(state: State) -> dict[str, dict[str, dict[str, object]]]:
    return {key: {str(meta["phx_ref"]): meta for meta in metas["metas"]} for key, metas in state.items()}


class PresenceMachine(RuleBasedStateMachine):
    """Any sequence of changes, with diffs taken at any time, beside a client that follows."""

    entries: Bundle[Entry] = Bundle("entries")

    def __init__(self) -> None:
        super().__init__()
        self.presence = Tracker("n")
        self.followers: dict[str, State] = {"a": {}, "b": {}}

    @rule(
        target=entries, topic=st.sampled_from("ab"), key=st.sampled_from(["u1", "u2"]), mood=st.integers(0, 3)
    )
    def track(self, topic: str, key: str, mood: int) -> Entry:
        return topic, key, self.presence.track(topic, key, {"mood": mood})

    @rule(target=entries, entry=entries, mood=st.integers(0, 3))
    def update(self, entry: Entry, mood: int) -> Entry:
        topic, key, ref = entry
        if ref not in by_ref(self.presence.view.state(topic)).get(key, {}):
            return entry
        new = self.presence.update(topic, key, ref, {"mood": mood})
        assert by_ref(self.presence.view.state(topic))[key][new]["phx_ref_prev"] == ref
        return topic, key, new

    @rule(entry=entries)
    def untrack(self, entry: Entry) -> None:
        topic, key, ref = entry
        if ref in by_ref(self.presence.view.state(topic)).get(key, {}):
            self.presence.untrack(topic, key, ref)

    @rule()
    def follow(self) -> None:
        for topic, diff in self.presence.view.take_diffs().items():
            assert diff["joins"] or diff["leaves"], "an empty diff was sent"
            phoenix_sync_diff(self.followers[topic], diff)

    @rule(topic=st.sampled_from("ab"))
    def join_late(self, topic: str) -> None:
        """A client may take the state at any time, before the diff that says the same."""
        self.followers[topic] = copy.deepcopy(self.presence.view.state(topic))

    @invariant()
    def followers_agree_after_the_next_diff(self) -> None:
        trial = copy.deepcopy(self.presence)
        followers = copy.deepcopy(self.followers)
        for topic, diff in trial.view.take_diffs().items():
            phoenix_sync_diff(followers[topic], diff)
        for topic, state in followers.items():
            assert by_ref(state) == by_ref(trial.view.state(topic))


TestPresence = PresenceMachine.TestCase
TestPresence.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_two_sockets_of_a_user_are_two_metas_under_one_key() -> None:
    """The user stays present until the last of their sockets goes, and each diff names the one that changed."""
    presence = Tracker("n")
    first = presence.track("t", "u", {"device": "phone"})
    second = presence.track("t", "u", {"device": "desk"})
    assert [meta["device"] for meta in presence.view.state("t")["u"]["metas"]] == ["phone", "desk"]
    presence.view.take_diffs()
    presence.untrack("t", "u", first)
    assert presence.view.is_present("t", "u")
    assert presence.view.take_diffs() == {
        "t": {"joins": {}, "leaves": {"u": {"metas": [{"device": "phone", "phx_ref": first}]}}}
    }
    presence.untrack("t", "u", second)
    assert not presence.view.is_present("t", "u")
    assert presence.view.state("t") == {}


def test_who_came_and_went_between_two_diffs_is_in_neither() -> None:
    """A flicker within one interval costs nobody anything."""
    presence = Tracker("n")
    presence.untrack("t", "u", presence.track("t", "u", {}))
    assert presence.view.take_diffs() == {}


def test_who_went_and_is_back_between_two_diffs_is_in_neither() -> None:
    """As all people of a node are that was out of reach: phoenix.js would have them leave after they join."""
    presence = Presence()
    presence.add("a", "u1", "1", {"phx_ref": "1"})
    follower: State = {}
    phoenix_sync_diff(follower, presence.take_diffs()["a"])
    presence.remove("a", "u1", "1")
    presence.add("a", "u1", "1", {"phx_ref": "1"})
    assert presence.take_diffs() == {}
    presence.remove("a", "u1", "1")
    late = presence.state("a")
    presence.add("a", "u1", "1", {"phx_ref": "1"})
    diff = presence.take_diffs()["a"]
    for state in (follower, late):
        phoenix_sync_diff(state, diff)
        assert by_ref(state) == by_ref(presence.state("a"))

"""Settings of calls become rules of targets and methods."""

from __future__ import annotations

from pathlib import Path

import pytest

from whispr.call_rules import rpc_limits, rules_of
from whispr.config import ConfigError, load
from whispr.rpc.limits import RpcLimits


def test_rules_come_from_the_file_and_variables(tmp_path: Path) -> None:
    """A method's rule goes before its target's, that before what is for all; variables before the file."""
    file = tmp_path / "whispr.toml"
    file.write_text("[calls]\nattempts = 2\n[calls.rules.user]\ndeadline_s = 1\nin_flight = 7\n")
    rules = rules_of(load({"WHISPR_CALLS_DEADLINE_S": "3"}, file).settings)
    assert rules.of_call("media", "MediaService/ListMedia").deadline_s == 3
    assert rules.of_call("media", "MediaService/ListMedia").retry.attempts == 2
    assert rules.of_call("user", "UserService/ListBlocks").deadline_s == 1
    assert rules.of_target("user").bulkhead.in_flight_max == 7
    assert rules.of_target("media").bulkhead.in_flight_max == 1000
    given = '{"UserService/CheckUserBlocks": {"attempts": 5, "hedge_s": 0.05}}'
    rules = rules_of(load({"WHISPR_CALLS_RULES": given}).settings)
    method = rules.of_call("user", "UserService/CheckUserBlocks")
    assert (method.retry.attempts, method.hedge_s) == (5, 0.05)


def test_what_has_a_stand_in_is_tried_once() -> None:
    """Permissions have last good answers and links stay pending: nobody waits for another attempt, unless told to."""
    method = "UserService/ValidateMessagePermissions"
    assert rules_of(load({}).settings).of_call("user", method).retry.attempts == 1
    told = load({"WHISPR_CALLS_RULES": f'{{"{method}": {{"attempts": 2}}}}'}).settings
    assert rules_of(told).of_call("user", method).retry.attempts == 2


@pytest.mark.parametrize(
    "environ",
    [
        {"WHISPR_CALLS_BACKOFF_S": "9"},
        {"WHISPR_CALLS_ATTEMPTS": "6"},
        {"WHISPR_CALLS_RULES": '{"user": {"x": 1}}'},
    ],
)
def test_rules_that_make_no_sense_are_refused(environ: dict[str, str]) -> None:
    """Each is named with the variable it came from."""
    with pytest.raises(ConfigError, match=next(iter(environ))):
        load(environ)


def test_services_are_found_again_soon() -> None:
    """However long a service was away, its callers look for it every second."""
    assert rpc_limits(RpcLimits()).backoff_s_max <= 1

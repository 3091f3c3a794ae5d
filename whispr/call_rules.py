"""From the settings to the rules of calls out: which target, which method, what it may take. Pure.

What the operator does not say is said here, for calls whose failure is better met in another way than by waiting.
"""

from __future__ import annotations

from dataclasses import replace

from whispr.config import Settings
from whispr.config.calls import CallRule, CallSettings
from whispr.resilience.breaker import BreakerRules
from whispr.resilience.bulkhead import BulkheadRules
from whispr.resilience.retry import Backoff, RetryRules
from whispr.resilience.target import CallRules, Rules, TargetRules
from whispr.rpc.limits import RpcLimits

RECONNECT_S, RECONNECT_S_MAX = 0.1, 1.0
"""Pauses between attempts to connect to another service: it is found again about a second after it is back."""

_AT_ONCE = (
    "UserService/ValidateMessagePermissions",
    "UserService/ValidateConversationAccess",
    "UserService/CheckPresenceVisibility",
    "MediaService/LinkMediaToMessage",
    "MessagingService/GetConversation",
)
"""Tried once: a last good answer or a pending state stands in for them, and somebody waits for it."""


def rules_of(settings: Settings) -> Rules:
    """The rules of every target and method."""
    calls = settings.calls
    targets = {name: _target(calls, rule) for name, rule in calls.rules.items() if "/" not in name}
    plain = _call(calls, CallRule())
    methods = {name: replace(plain, retry=replace(plain.retry, attempts=1)) for name in _AT_ONCE}
    said = {name: _call(calls, rule) for name, rule in calls.rules.items()}
    return Rules(target=_target(calls, CallRule()), call=plain, targets=targets, calls=methods | said)


def rpc_limits(limits: RpcLimits) -> RpcLimits:
    """The limits of channels between services: a breaker looks after the rest, so they come back soon."""
    return replace(limits, backoff_s=RECONNECT_S, backoff_s_max=RECONNECT_S_MAX)


def _call(calls: CallSettings, rule: CallRule) -> CallRules:
    backoff = Backoff(calls.backoff_s, calls.backoff_s_max)
    return CallRules(
        deadline_s=calls.deadline_s if rule.deadline_s is None else rule.deadline_s,
        retry=RetryRules(calls.attempts if rule.attempts is None else rule.attempts, backoff),
        hedge_s=calls.hedge_s if rule.hedge_s is None else rule.hedge_s,
    )


def _target(calls: CallSettings, rule: CallRule) -> TargetRules:
    return TargetRules(
        breaker=BreakerRules(
            failures_in_a_row=calls.breaker_failures,
            open_s=calls.breaker_open_s,
            open_s_max=calls.breaker_open_s_max,
        ),
        bulkhead=BulkheadRules(
            calls.in_flight if rule.in_flight is None else rule.in_flight,
            calls.queue if rule.queue is None else rule.queue,
        ),
        hung_s=calls.hung_s,
        retry_tokens=calls.retry_tokens,
    )

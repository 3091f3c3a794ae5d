"""What stands between this process and everything it depends on.

    target = Target("store", TargetRules(), clock=trio.current_time)
    data = await target.run(lambda: fetch(key), CallRules(deadline_s=2))

One shape, `Policy`: `await policy.run(attempt)` runs an operation, perhaps more than once, perhaps not at all, and
returns what it returns or raises WhisprError. Policies compose: `compose(a, b)` runs b inside a.

    retry, breaker, bulkhead    state machines and arithmetic: pure, the clock passed in
    policy                      what executes them: Deadline, Retry, Breaking, Limiting
    hedge, fallback             a second attempt beside a slow one; what serves when there is no answer
    target                      all of it for one thing depended on, and what is known of how it is
    metrics                     what Prometheus reads

There are no timeouts to pass: an operation has as long as the cancel scope it runs in, or as its rules say if that
is less. What fails says so as a WhisprError; Trio's Cancelled goes on to whom it belongs.
"""

"""The section of calls to everything outside the process."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from whispr.config.fields import Section


class CallRule(Section):
    """What differs for one target or one method; what is not said is as for all."""

    deadline_s: Annotated[float, Field(gt=0)] | None = None
    attempts: Annotated[int, Field(ge=1, le=5)] | None = None
    hedge_s: Annotated[float, Field(ge=0)] | None = None
    in_flight: Annotated[int, Field(ge=1)] | None = None
    queue: Annotated[int, Field(ge=0)] | None = None


class CallSettings(Section):
    """Calls to everything outside the process: services, push services, the media store, the virus scanner."""

    deadline_s: Annotated[float, Field(gt=0)] = 5
    """For all attempts of a call, unless its caller has less."""
    attempts: Annotated[int, Field(ge=1, le=5)] = 3
    """Of calls that may be made twice, as their protos say; 1 never tries again."""
    backoff_s: Annotated[float, Field(gt=0)] = 0.1
    """The longest pause after a first failure; twice as long after each further one."""
    backoff_s_max: Annotated[float, Field(gt=0)] = 1
    retry_tokens: Annotated[float, Field(ge=1)] = 20
    """A target's budget: a failure takes one, nobody tries again while half are gone, ten successes give one back."""
    hedge_s: Annotated[float, Field(ge=0)] = 0
    """When a read that is slow is asked a second time beside the first; 0 never. Of any method whose proto says
    `NO_SIDE_EFFECTS`, and of no other, whatever is set; a rule says it for one method."""
    breaker_failures: Annotated[int, Field(ge=1, le=100)] = 5
    """Failures in a row that open a target's breaker; half of the last hundred outcomes do, too."""
    breaker_open_s: Annotated[float, Field(gt=0)] = 1
    """How long it stays open before one call tries; twice as long each time that fails."""
    breaker_open_s_max: Annotated[float, Field(gt=0)] = 4
    hung_s: Annotated[float, Field(gt=0)] = 1
    """A call ended by its deadline counts as failed if it had waited as long."""
    in_flight: Annotated[int, Field(ge=1)] = 1000
    """Calls to one target at a time; of further ones `queue` wait, and others are refused."""
    queue: Annotated[int, Field(ge=0)] = 1000
    rules: dict[str, CallRule] = Field(default_factory=dict)
    """By target ("user"), or by method ("UserService/CheckUserBlocks"): a table in the file, JSON in a variable."""

    @model_validator(mode="after")
    def _relations(self) -> CallSettings:
        for low, high in (("backoff_s", "backoff_s_max"), ("breaker_open_s", "breaker_open_s_max")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low} {getattr(self, low)} is over {high} {getattr(self, high)}")
        return self

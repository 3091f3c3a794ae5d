"""The processes that share this gateway's port, each of which answers the same questions about itself.

A connection meets whichever of them the kernel chose; an operator wants to see the one they name, or all. What the
process answers itself is asked directly; the others are asked through `Ask`, which the composition root provides.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import trio

from whispr.errors import not_found, unavailable

Answer = Callable[[Mapping[str, Any]], Awaitable[Any]]
"""Answers one kind of question; its parameters and what it returns are for JSON."""
Ask = Callable[[str, str, Mapping[str, Any]], Awaitable[Any | None]]
"""Asks a worker, by its number, a question, by its name. None when it did not answer."""


async def _nobody(worker: str, question: str, parameters: Mapping[str, Any]) -> Any | None:
    del worker, question, parameters
    return None


class Processes:
    """Those of one machine; a process that shares its port with nobody is worker 1 of 1."""

    def __init__(
        self,
        answers: Mapping[str, Answer],
        *,
        own: str = "1",
        names: Sequence[str] = ("1",),
        ask: Ask = _nobody,
    ) -> None:
        self.own = own
        self.names = tuple(names)
        self._answers = answers
        self._ask = ask

    async def answer(self, question: str, parameters: Mapping[str, Any]) -> Any:
        """Answer for this process. Raises NOT_FOUND for a question that nobody knows."""
        if question not in self._answers:
            raise not_found("question", question)
        return await self._answers[question](parameters)

    async def ask(self, worker: str, question: str, parameters: Mapping[str, Any]) -> Any:
        """Ask one of them; an empty name is this one. Raises NOT_FOUND, UNAVAILABLE when it does not answer."""
        if worker in ("", self.own):
            return await self.answer(question, parameters)
        if worker not in self.names:
            raise not_found("worker", f"{worker[:20]} (there are {', '.join(self.names)})")
        answer = await self._ask(worker, question, parameters)
        if answer is None:
            raise unavailable(f"worker {worker} did not answer")
        return answer

    async def ask_all(self, question: str, parameters: Mapping[str, Any]) -> dict[str, Any | None]:
        """Ask all of them at once; None for one that did not answer."""
        answers: dict[str, Any | None] = dict.fromkeys(self.names)

        async def ask(worker: str) -> None:
            if worker == self.own:
                answers[worker] = await self.answer(question, parameters)
            else:
                answers[worker] = await self._ask(worker, question, parameters)

        async with trio.open_nursery() as nursery:
            for worker in self.names:
                nursery.start_soon(ask, worker)
        return answers

"""Questions that the workers of one machine ask each other, so that whichever is met can show them all.

Each listens on a Unix socket in the folder of the workers' sockets, which is theirs alone. A question is one line of
JSON, `{"question", "parameters"}`; the answer is JSON up to the end of the connection, nothing for a question that
could not be answered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import structlog
import trio

from whispr.errors import WhisprError
from whispr.unix_sockets import open_unix_listener

ASK_S = 2.0
"""How long a process may take to answer."""
QUESTION_BYTES_MAX = 16 * 1024
ANSWER_BYTES_MAX = 16 * 1024 * 1024

Answer = Callable[[str, Mapping[str, Any]], Awaitable[Any]]

log = structlog.get_logger("whispr.workers")


class _Question(msgspec.Struct):
    question: str
    parameters: dict[str, Any]


def socket_name(worker: int | str) -> str:
    """Return the name of the socket on which a worker answers."""
    return f"answers-{worker}.sock"


async def serve_answers(
    path: Path, answer: Answer, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer whoever connects, until cancelled."""

    async def serve(stream: trio.SocketStream) -> None:
        with trio.move_on_after(ASK_S):
            try:
                asked = msgspec.json.decode(await _line(stream), type=_Question)
                answered = await answer(asked.question, asked.parameters)
                await stream.send_all(msgspec.json.encode(answered))
            except (WhisprError, msgspec.MsgspecError, trio.BrokenResourceError) as error:
                log.info("question_not_answered", error=str(error))

    listener = await open_unix_listener(str(path))
    task_status.started()
    await trio.serve_listeners(serve, [listener])


async def ask(path: Path, question: str, parameters: Mapping[str, Any]) -> Any | None:
    """Ask the process that listens on `path`; None when it does not answer within ASK_S."""
    with trio.move_on_after(ASK_S):
        try:
            async with await trio.open_unix_socket(str(path)) as stream:
                asked = _Question(question, dict(parameters))
                await stream.send_all(msgspec.json.encode(asked) + b"\n")
                answer = bytearray()
                async for part in stream:
                    answer += part
                    if len(answer) > ANSWER_BYTES_MAX:
                        return None
                return msgspec.json.decode(answer) if answer else None
        except (OSError, trio.BrokenResourceError, msgspec.MsgspecError) as error:
            log.info("worker_did_not_answer", error=str(error))
    return None


async def _line(stream: trio.SocketStream) -> bytes:
    """Read up to the end of a line, or of what is said."""
    read = bytearray()
    while b"\n" not in read and len(read) <= QUESTION_BYTES_MAX:
        part = await stream.receive_some()
        if not part:
            break
        read += part
    return bytes(read)

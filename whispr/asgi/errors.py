"""Errors with a status of HTTP's own, for applications that speak more of it than gRPC codes can say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from google.rpc.error_details_pb2 import ErrorInfo
from starlette.types import Scope

from whispr.errors import DOMAIN, Code, WhisprError

ERROR_HEADERS: Final = "whispr.error_headers"
"""In the scope of a request, by who serves it: headers (a mapping of text) that an error is answered with, too."""


METHOD_CHARS_MAX: Final = 20
"""Of a method that is not known, so much is said back."""


class HttpError(WhisprError):
    """An error with an HTTP status of its own, beside the gRPC code that is nearest."""

    def __init__(
        self,
        status: int,
        code: Code,
        message: str,
        reason: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(code, message, [ErrorInfo(reason=reason, domain=DOMAIN)])
        self.status = status
        self.headers = dict(headers or {})
        """What the answer says beside the error."""


def not_allowed(method: str, allowed: str) -> HttpError:
    """Return the error of a method (RFC 9110, 15.5.6); `allowed`: those there are, as in "GET, HEAD"."""
    message = f"no {method[:METHOD_CHARS_MAX]} here, only {allowed}"
    return HttpError(405, Code.UNIMPLEMENTED, message, "method_not_allowed", {"allow": allowed})


def must_read(scope: Scope) -> None:
    """Refuse what is more than reading. Raises `HttpError` (405)."""
    if scope["method"] not in ("GET", "HEAD"):
        raise not_allowed(scope["method"], "GET, HEAD")


def open_to_pages(scope: Scope) -> None:
    """Let pages of any origin read what is wrong with their request, too."""
    scope[ERROR_HEADERS] = {"access-control-allow-origin": "*"}

"""Errors with a status of HTTP's own, for applications that speak more of it than gRPC codes can say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from google.rpc.error_details_pb2 import ErrorInfo

from whispr.errors import DOMAIN, Code, WhisprError

ERROR_HEADERS: Final = "whispr.error_headers"
"""In the scope of a request, by who serves it: headers (a mapping of text) that an error is answered with, too."""


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

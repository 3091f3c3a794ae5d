"""Errors with a status of HTTP's own, for applications that speak more of it than gRPC codes can say."""

from __future__ import annotations

from collections.abc import Mapping

from google.rpc.error_details_pb2 import ErrorInfo

from whispr.errors import DOMAIN, Code, WhisprError


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

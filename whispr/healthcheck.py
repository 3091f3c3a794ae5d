"""`python -m whispr.healthcheck`: whether the process of this machine is ready, for a container's HEALTHCHECK.

It needs neither curl nor anything that takes long to load. Exit code 0 when `/readyz` says so, else 1.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import sys
from pathlib import Path

PATIENCE_S = 4.0


def main() -> int:
    """Ask; return the exit code."""
    folder = Path(os.environ.get("WHISPR_DATA_DIR", ".whispr"))
    try:
        port = json.loads((folder / "ports.json").read_text())["gateway"]
        status = _asked(port, tls=bool(os.environ.get("WHISPR_GATEWAY_TLS_CERTIFICATE")))
    except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
        print(f"not ready: {error}", file=sys.stderr)
        return 1
    return 0 if status == http.HTTPStatus.OK else 1


def _asked(port: int, *, tls: bool) -> int:
    """Return the status of `/readyz`. The certificate is for a public name, and this is our own machine."""
    connection = (
        http.client.HTTPSConnection(
            "127.0.0.1",
            port,
            timeout=PATIENCE_S,
            context=ssl._create_unverified_context(),  # noqa: S323  # as said
        )
        if tls
        else http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    )
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())

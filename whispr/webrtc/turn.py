"""Servers that help clients reach us, as an HTTP answer names them (RFC 9725, section 4.6).

Our own side is where it says it is and needs none of them. A client behind a firewall that lets no UDP through needs
a TURN server, such as coturn with `use-auth-secret`: who shares its secret makes credentials that hold for a while
(draft-uberti-behave-turn-rest-00), and each client gets its own.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Sequence
from typing import Final

CREDENTIALS_S: Final = 12 * 3600
"""How long a client may connect anew with what it was given."""


def ice_server_links(urls: Sequence[str], secret: str, unix_s: float) -> list[str]:
    """Write the value of a Link header for each server; TURN servers with credentials if there is a secret."""
    username = str(int(unix_s) + CREDENTIALS_S)
    password = base64.b64encode(hmac.digest(secret.encode(), username.encode(), "sha1")).decode()
    known = f'; username="{username}"; credential="{password}"; credential-type="password"'
    return [
        f'<{url}>; rel="ice-server"' + (known if secret and url.startswith(("turn:", "turns:")) else "")
        for url in urls
    ]

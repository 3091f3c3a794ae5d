"""The pages' files: HTML, scripts and style sheets, as they are in the package, and the headers they go out with.

No page has a script or a style in it, and none talks to another host: the content security policy says so, and lets
a page connect to this gateway and to the real-time listener alone.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from importlib import resources
from importlib.resources.abc import Traversable
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from whispr.asgi.conditions import matches

PAGES = {
    "/": "index.html",
    "/console": "console.html",
    "/docs": "docs.html",
    "/listen/": "streams.html",
    "/listen/{stream_id}/": "listen.html",
    "/live/": "live.html",
}
"""By the paths that they are served at."""
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "cache-control": "no-cache",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_FILE_HEADERS = {**_HEADERS, "content-security-policy": "default-src 'none'"}
"""Of what a page loads: looked at by itself, it does nothing."""
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}")
_SOCKET_PATH = "/socket/websocket"


@dataclass(frozen=True, slots=True)
class Places:
    """Where browsers find what is not on the gateway's own port."""

    websocket_port: int = 4000
    websocket_url: str = ""
    """Instead of this host at that port."""
    media_url: str = ""
    """What begins the URLs of media; this gateway when empty."""

    def as_json(self) -> dict[str, object]:
        """What `/client.json` tells the pages."""
        url, port = self.websocket_url, self.websocket_port
        return {"websocket": {"url": url, "port": port, "path": _SOCKET_PATH}, "media_url": self.media_url}


def page_headers(places: Places, host: str) -> dict[str, str]:
    """Return the headers of a page that is asked for as `host`, which is what the Host field says."""
    media = _origin(places.media_url)
    connect = " ".join(filter(None, ("'self'", *_socket_sources(places, host), media)))
    images = " ".join(filter(None, ("'self'", "blob:", media)))
    policy = (
        f"default-src 'none'; script-src 'self'; style-src 'self'; connect-src {connect}; img-src {images}; "
        f"media-src {images}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {**_HEADERS, "content-security-policy": policy, "vary": "host"}


def asset_routes(places: Places) -> list[Route]:
    """Return the routes of the pages, and of every file they load, under `/assets/`."""
    root = resources.files("whispr.gateway").joinpath("assets")
    routes = [Route(path, _served(root.joinpath(name), name, places)) for path, name in PAGES.items()]
    for name, file in _files(root, ""):
        if not name.endswith(".html"):
            routes.append(Route(f"/assets/{name}", _served(file, name, places)))
    return routes


def _files(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    for entry in sorted(folder.iterdir(), key=lambda each: each.name):
        if entry.is_dir():
            yield from _files(entry, f"{prefix}{entry.name}/")
        elif _suffix(entry.name) in _TYPES:
            yield f"{prefix}{entry.name}", entry


def _served(file: Traversable, name: str, places: Places) -> Callable[[Request], Awaitable[Response]]:
    content = file.read_bytes()
    etag = f'"{blake2b(content, digest_size=12).hexdigest()}"'
    media_type = _TYPES[_suffix(name)]
    is_page = name.endswith(".html")

    async def serve(request: Request) -> Response:
        own = page_headers(places, request.headers.get("host", "")) if is_page else _FILE_HEADERS
        headers = {**own, "etag": etag}
        if matches(request.headers.get("if-none-match", ""), etag):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)

    return serve


def _suffix(name: str) -> str:
    return name[name.rfind(".") :] if "." in name else ""


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else ""


def _socket_sources(places: Places, host: str) -> tuple[str, ...]:
    """Name what the page's socket may connect to; a host that no policy can name is any host, by its scheme."""
    if places.websocket_url:
        return (_origin(places.websocket_url),)
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    if not _HOST.fullmatch(name):
        return ("ws:", "wss:")
    return f"ws://{name}:{places.websocket_port}", f"wss://{host}"

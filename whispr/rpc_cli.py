"""`whispr rpc`: what a gRPC server offers, and calls to it with JSON in and out, by reflection.

    whispr rpc list [TARGET] [SERVICE]
    whispr rpc describe [TARGET] [SYMBOL]
    whispr rpc call [TARGET] package.Service/Method -d '{"field": "value"}' -H 'name: value' --deadline 5

TARGET is host:port, unix:/path, or the name of a service of ours, whose port is read from the data folder;
without it, the service that the symbol belongs to. Exit codes: 0, 64 + the gRPC status code, or 2 for bad usage.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import trio
import typer

from whispr import ports
from whispr.config import SERVICES, load
from whispr.rpc.tls import TlsFiles
from whispr.rpc.wire import decode_binary

if TYPE_CHECKING:
    # What does the work takes a while to load, which no other command should wait for.
    from whispr.rpc_console import Headers, Server, Work

rpc_app = typer.Typer(no_args_is_help=True, help="Look at gRPC servers and call them, by reflection.")

Names = Annotated[list[str] | None, typer.Argument(metavar="[TARGET] [SYMBOL]")]
Header = Annotated[list[str] | None, typer.Option("-H", "--header", help="Metadata, 'name: value'.")]
Deadline = Annotated[float | None, typer.Option("--deadline", min=0, help="Seconds for all of it.")]
Token = Annotated[str, typer.Option("--token", help="Sent as `authorization: Bearer …`.")]
Tls = Annotated[bool, typer.Option("--tls", help="Encrypt; implied by the three options below.")]
CaCert = Annotated[Path | None, typer.Option("--cacert", help="Whom to trust, instead of the system's.")]
Cert = Annotated[Path | None, typer.Option("--cert", help="Our certificate, for mutual TLS.")]
Key = Annotated[Path | None, typer.Option("--key", help="Its key.")]
Config = Annotated[Path | None, typer.Option("--config", help="Where our own services are found.")]


@rpc_app.command("list")
def list_(
    names: Names = None,
    header: Header = None,
    deadline: Deadline = None,
    token: Token = "",
    tls: Tls = False,
    cacert: CaCert = None,
    cert: Cert = None,
    key: Key = None,
    config: Config = None,
) -> None:
    """List a server's services, or the methods of one of them."""
    from whispr import rpc_console

    target, symbol = _target_and_symbol(names, config)
    server = _server(target, header, token, tls, cacert, cert, key)
    _run(partial(rpc_console.list_names, symbol), server, deadline)


@rpc_app.command()
def describe(
    names: Names = None,
    header: Header = None,
    deadline: Deadline = None,
    token: Token = "",
    tls: Tls = False,
    cacert: CaCert = None,
    cert: Cert = None,
    key: Key = None,
    config: Config = None,
) -> None:
    """Show a service, method, message, enum or field as its proto; all services when none is named."""
    from whispr import rpc_console

    target, symbol = _target_and_symbol(names, config)
    server = _server(target, header, token, tls, cacert, cert, key)
    _run(partial(rpc_console.describe, symbol), server, deadline)


@rpc_app.command()
def call(
    names: Annotated[list[str] | None, typer.Argument(metavar="[TARGET] SERVICE/METHOD")] = None,
    data: Annotated[
        str,
        typer.Option("-d", "--data", help="JSON, several objects for a stream; @- and @FILE read it there."),
    ] = "",
    header: Header = None,
    deadline: Deadline = None,
    token: Token = "",
    compression: Annotated[str | None, typer.Option(help="Of what is sent: gzip or deflate.")] = None,
    defaults: Annotated[bool, typer.Option("--emit-defaults", help="Show fields without a value.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Metadata, on standard error.")] = False,
    tls: Tls = False,
    cacert: CaCert = None,
    cert: Cert = None,
    key: Key = None,
    config: Config = None,
) -> None:
    """Call a method: JSON in, one JSON object out for each message."""
    from whispr import rpc_console

    target, symbol = _target_and_symbol(names, config)
    server = _server(target, header, token, tls, cacert, cert, key)
    text = None if data in ("@", "@-") else data
    try:
        if data.startswith("@") and text is not None:
            text = Path(data[1:]).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise _bad_usage(f"-d: {error}") from error
    options = rpc_console.CallOptions(compression=compression, defaults=defaults, verbose=verbose)
    _run(partial(rpc_console.call, symbol, text, options), server, deadline)


def _run(work: Work, server: Server, deadline_s: float | None) -> None:
    from whispr import rpc_console

    try:
        code = trio.run(rpc_console.run, work, server, deadline_s)
    except rpc_console.UsageError as error:
        raise _bad_usage(str(error)) from error
    raise typer.Exit(code)


def _bad_usage(problem: str) -> typer.Exit:
    print(f"whispr: {problem}", file=sys.stderr)
    return typer.Exit(2)


# --- Where --------------------------------------------------------------------------------------------------


def _target_and_symbol(names: list[str] | None, config: Path | None) -> tuple[str, str]:
    """Tell a target from a symbol: it has a colon, or is the name of a service."""
    given = list(names or [])
    target = given.pop(0) if given and (":" in given[0] or given[0] in SERVICES) else ""
    symbol = given.pop(0).strip("/") if given else ""
    if given:
        raise _bad_usage(f"unexpected: {' '.join(given)}")
    return (target if ":" in target else _ours(target or _owner(symbol), config)), symbol


def _owner(symbol: str) -> str:
    """Name the service of ours that a symbol belongs to, as `auth`; "" when it is nobody's."""
    service = symbol.partition("/")[0].removeprefix("whispr.v1.").partition(".")[0]
    name = service.removesuffix("Service").lower()
    return name if name in SERVICES else ""


def _ours(name: str, config: Path | None) -> str:
    """Find where a service of ours listens, or any of them."""
    settings = load(file=config).settings
    file = settings.data_dir / ports.FILE
    published = ports.read(settings.data_dir)
    if not published:
        raise _bad_usage(f"nothing of ours runs here, for there is no {file}: give host:port")
    name = name or next((service for service in SERVICES if service in published), "")
    if name not in published:
        raise _bad_usage(f"{name or 'no service'} does not run here, says {file}: give host:port")
    return f"{settings.reach_host(name)}:{published[name]}"


def _server(
    target: str,
    headers: list[str] | None,
    token: str,
    tls: bool,
    cacert: Path | None,
    cert: Path | None,
    key: Path | None,
) -> Server:
    from whispr.rpc_console import Server

    files = None
    try:
        if tls or cacert or cert or key:
            files = TlsFiles(cert, key, cacert)
            files.client_context()
        return Server(target, _metadata(headers, token), files)
    except (OSError, ValueError) as error:  # an ssl.SSLError is an OSError
        raise _bad_usage(str(error)) from error


def _metadata(headers: list[str] | None, token: str) -> Headers:
    """Metadata out of `name: value`; `-bin` values are base64. Raises ValueError naming the bad one."""
    pairs: Headers = []
    for text in headers or []:
        name, colon, value = text.partition(":")
        name, value = name.strip().lower(), value.strip()
        if not colon or not name:
            raise ValueError(f"-H {text!r} is not 'name: value'")
        pairs.append((name, decode_binary(value) if name.endswith("-bin") else value))
    return [*pairs, ("authorization", f"Bearer {token}")] if token else pairs

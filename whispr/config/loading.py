"""Reads the TOML file and the environment, remembers who said what, and reports all that is wrong at once."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_settings import EnvSettingsSource

from whispr.config.fields import Section
from whispr.config.settings import PREFIX, Settings

_AUTHORITY_END = re.compile("[/?#]")
_SECRET_PARAMETER = re.compile("([?&][a-z]*(?:password|secret|token)=)[^&#]*", re.IGNORECASE)
_TOKEN_SCHEMES = frozenset({"nats", "tls"})
"""Of URLs whose user is a token, if there is no password."""

Key = tuple[str, ...]
Origins = dict[Key, str]

DEFAULT_FILE = Path("config/whispr.toml")

_SEED_VARIABLES = {
    "GRPC_PORT": ("messaging", "port"),
    "USER_SERVICE_GRPC_ENDPOINT": ("user", "endpoint"),
    "MEDIA_SERVICE_GRPC_ENDPOINT": ("media", "endpoint"),
    "NOTIFICATION_SERVICE_GRPC_ENDPOINT": ("notification", "endpoint"),
}
_FILE = "_FILE"
"""After a variable's name: its value is in the file named."""
_NOT_SETTINGS = frozenset({"WHISPR_CONFIG"})
"""Variables that are read elsewhere and name no setting."""


class ConfigError(Exception):
    """The configuration cannot be used; `problems` says why, one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Loaded(BaseModel):
    """Settings with the origin of every value that is not a default."""

    settings: Settings
    origins: Origins


def load(environ: Mapping[str, str] | None = None, file: Path | None = None) -> Loaded:
    """Read the file (`file`, else `WHISPR_CONFIG`, else config/whispr.toml if there) and the environment.

    A variable with `_FILE` after its name names a file that holds the value: for secrets, which an environment
    shows to too many. Raises `ConfigError` with every problem found, each by key and source.
    """
    environ, problems = _with_files(os.environ if environ is None else environ)
    path = file or (Path(environ["WHISPR_CONFIG"]) if environ.get("WHISPR_CONFIG") else None)
    if path is None and DEFAULT_FILE.exists():
        path = DEFAULT_FILE
    values: dict[str, Any] = {}
    origins: Origins = {}
    if path is not None:
        _merge(values, origins, _read_toml(path), lambda _: str(path))
    _merge(values, origins, _seed_values(environ), _seed_name)
    _merge(values, origins, _environment_values(environ), lambda key: PREFIX + "_".join(key).upper())
    problems += [f"{name}: no such setting" for name in _unknown_variables(environ, set(origins.values()))]
    settings = None
    try:
        settings = Settings(**values)
    except ValidationError as error:
        problems += [_describe(dict(problem), origins) for problem in error.errors()]
    if problems or settings is None:
        raise ConfigError(sorted(problems))
    return Loaded(settings=settings, origins=origins)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not valid TOML: {error}"]) from error


def _with_files(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The variables, those that are in files read; and what is wrong with any of these."""
    found, problems = dict(environ), []
    known = _known_variables()
    for name, path in environ.items():
        setting = name.removesuffix(_FILE)
        if name in known or setting not in known or not path:
            continue
        del found[name]
        if environ.get(setting):
            problems.append(f"{name}: {setting} is set too")
            continue
        try:
            found[setting] = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{name}: cannot read {path}: {error}")
    return found, problems


def _environment_values(environ: Mapping[str, str]) -> dict[str, Any]:
    source = EnvSettingsSource(Settings)
    source.env_vars = {name.lower(): value for name, value in environ.items() if value != ""}
    return source()


def _seed_values(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, (section, key) in _SEED_VARIABLES.items():
        if environ.get(name):
            values.setdefault(section, {})[key] = environ[name]
    return values


def _seed_name(key: tuple[str, ...]) -> str:
    return next(name for name, path in _SEED_VARIABLES.items() if path == key)


def _merge(values: dict[str, Any], origins: Origins, new: dict[str, Any], name: Callable[[Key], str]) -> None:
    """Lay `new` over `values`, remembering for every leaf who said it."""
    for key, value in _leaves(new):
        target = values
        for part in key[:-1]:
            if not isinstance(target.get(part), dict):
                target[part] = {}
            target = target[part]
        target[key[-1]] = value
        origins[key] = name(key)


def _leaves(values: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and not prefix:
            yield from _leaves(value, (key,))
        else:
            yield (*prefix, key), value


def _unknown_variables(environ: Mapping[str, str], read: set[str]) -> list[str]:
    """Name the variables that look like settings and reached none."""
    known = _known_variables() | read | _NOT_SETTINGS
    return [name for name in environ if name.startswith(PREFIX) and name not in known]


def _known_variables() -> set[str]:
    """Name the variables of all settings."""
    known = {PREFIX + name.upper() for name in Settings.model_fields if name not in Settings.SECTIONS}
    for section in Settings.SECTIONS:
        kind = Settings.model_fields[section].annotation
        assert isinstance(kind, type)
        assert issubclass(kind, Section)
        known |= {f"{PREFIX}{section}_{key}".upper() for key in kind.model_fields}
    return known


def _describe(problem: dict[str, Any], origins: Mapping[tuple[str, ...], str]) -> str:
    key = tuple(str(part) for part in problem["loc"])
    origin = next((origins[key[:n]] for n in range(len(key), 0, -1) if key[:n] in origins), None)
    if origin is None:
        origin = ", ".join(sorted({o for k, o in origins.items() if k[: len(key)] == key})) or "defaults"
    unknown = problem["type"] == "extra_forbidden"
    what = "no such setting" if unknown else problem["msg"]
    given = problem.get("input")
    # What has a wrong name, or may be a secret, is not repeated: errors end up in logs.
    hidden = unknown or key[-1:] == ("url",) or any("secret" in part for part in key[-1:])
    shown = f" = {given!r}" if isinstance(given, str | int | float) and not hidden else ""
    return f"{'.'.join(key) or 'settings'}{shown} (from {origin}): {what}"


def without_password(url: str) -> str:
    """Return a URL fit to be shown: its password, if any, replaced by asterisks; so is a token for NATS."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    authority = _AUTHORITY_END.split(rest, maxsplit=1)[0]
    after = _SECRET_PARAMETER.sub(r"\1***", rest.removeprefix(authority))
    known, at, hosts = authority.rpartition("@")
    user, colon, _ = known.partition(":")
    if colon:
        known = f"{user}:***"
    elif at and scheme in _TOKEN_SCHEMES:
        known = "***"
    return f"{scheme}://{known}{at}{hosts}{after}"

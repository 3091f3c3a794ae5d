"""Generate `whispr/v1` from `proto/`: messages, their type stubs, servicers and stubs.

`python -m whispr.rpc.generate` writes the files; `--check` writes nothing and fails, naming them, when the
committed ones differ from what the protos say. Needs grpcio-tools (a development dependency) for protoc.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import google.api.annotations_pb2
from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from whispr.rpc import codegen


class GenerateError(Exception):
    """protoc refused the input; its own messages have gone to stderr."""


def generate(proto_dir: Path, names: list[str], out_dir: Path) -> None:
    """Write `_pb2.py`, `_pb2.pyi` and `_grpc.py` for protos `names`, given relative to `proto_dir`.

    Each folder also gets a `descriptors.binpb`, a FileDescriptorSet with the comments.

    Raises GenerateError when protoc does not accept them.
    """
    import grpc_tools
    from grpc_tools import protoc

    descriptors = out_dir / "descriptors.binpb"
    arguments = [
        "protoc",
        f"-I{proto_dir}",
        f"-I{Path(grpc_tools.__file__).parent / '_proto'}",
        f"-I{_google_api_root()}",
        f"--python_out={out_dir}",
        f"--pyi_out={out_dir}",
        f"--descriptor_set_out={descriptors}",
        "--include_imports",
        "--include_source_info",
        *names,
    ]
    if protoc.main(arguments) != 0:
        raise GenerateError(f"protoc refused {', '.join(names)}")
    # The descriptors hold what a plugin is told, so the generator runs here rather than as a child of protoc.
    files = FileDescriptorSet.FromString(descriptors.read_bytes()).file
    descriptors.unlink()
    response = codegen.generate(CodeGeneratorRequest(file_to_generate=names, proto_file=files))
    for file in response.file:
        (out_dir / file.name).write_text(file.content)
    _keep_comments(files, names, out_dir)


def _keep_comments(files: Iterable[FileDescriptorProto], names: list[str], out_dir: Path) -> None:
    """Write `descriptors.binpb` beside the generated files: what generated modules lack is the comments."""
    kept: dict[Path, FileDescriptorSet] = {}
    for file in files:
        if file.name in names:
            commented = [place for place in file.source_code_info.location if place.leading_comments]
            for place in commented:
                place.ClearField("span")
            del file.source_code_info.location[:]
            file.source_code_info.location.extend(commented)
            kept.setdefault((out_dir / file.name).parent, FileDescriptorSet()).file.append(file)
    for folder, descriptors in kept.items():
        (folder / "descriptors.binpb").write_bytes(descriptors.SerializeToString(deterministic=True))


def _google_api_root() -> Path:
    """The folder that holds `google/api/annotations.proto`: googleapis-common-protos ships its sources."""
    module = google.api.annotations_pb2.__file__
    assert module is not None, "a namespace package's module is a file"
    return Path(module).parents[2]


def protos_in(proto_dir: Path) -> list[str]:
    """Every .proto below `proto_dir`, relative to it, sorted."""
    return sorted(str(path.relative_to(proto_dir)) for path in proto_dir.rglob("*.proto"))


def differences(fresh: Path, committed: Path) -> list[str]:
    """Generated files that are missing, different, or left over from a proto that is gone."""
    fresh_files = {path.relative_to(fresh) for path in fresh.rglob("*.*") if path.is_file()}
    packages = {path.parent for path in fresh_files}
    patterns = ("*_pb2.py", "*_pb2.pyi", "*_grpc.py", "descriptors.binpb")
    old_files = {
        path.relative_to(committed)
        for package in packages
        for pattern in patterns
        for path in (committed / package).glob(pattern)
    }
    wrong = old_files - fresh_files
    for path in fresh_files:
        target = committed / path
        if not target.exists() or target.read_bytes() != (fresh / path).read_bytes():
            wrong.add(path)
    return sorted(map(str, wrong))


def _install(fresh: Path, root: Path) -> None:
    for name in differences(fresh, root):
        source = fresh / name
        if source.exists():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(source.read_bytes())
        else:
            (root / name).unlink()


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m whispr.rpc.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when files would change")
    parser.add_argument("--root", type=Path, default=Path(), help="the repository's root")
    arguments = parser.parse_args(argv)
    proto_dir = arguments.root / "proto"
    names = protos_in(proto_dir)
    if not names:
        print(f"no .proto files under {proto_dir}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        try:
            generate(proto_dir, names, fresh)
        except GenerateError as error:
            print(error, file=sys.stderr)
            return 2
        changed = differences(fresh, arguments.root)
        if not arguments.check:
            _install(fresh, arguments.root)
    for name in changed:
        print(f"{'differs' if arguments.check else 'wrote'}: {name}", file=sys.stderr)
    return 1 if arguments.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())

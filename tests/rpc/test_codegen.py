"""The protoc plugin and the command around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from whispr.rpc import generate

PROTO = """
syntax = "proto3";
package whispr.test.gen;
import "google/protobuf/empty.proto";
import "google/api/annotations.proto";
// Counts.
service Counter {
  // Add to the \\ "count".
  rpc Add(Amount) returns (Amount.Total) {
    option (google.api.http) = { post: "/v1/add" body: "*" };
  }
  rpc Watch(google.protobuf.Empty) returns (stream Amount.Total);
}
message Amount {
  optional int32 value = 1;
  message Total { int64 value = 1; }
}
"""


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "proto" / "whispr" / "testgen"
    folder.mkdir(parents=True)
    (folder / "counter.proto").write_text(PROTO)
    return tmp_path


def run(repo: Path, *arguments: str) -> int:
    return generate.main(["--root", str(repo), *arguments])


def test_writes_messages_type_stubs_and_services(repo: Path) -> None:
    """A proto yields messages, their .pyi, descriptors, and, having a service, a _grpc module that compiles."""
    assert run(repo) == 0
    folder = repo / "whispr" / "testgen"
    assert {path.name for path in folder.iterdir()} == {
        "counter_pb2.py",
        "counter_pb2.pyi",
        "counter_grpc.py",
        "descriptors.binpb",
    }
    source = (folder / "counter_grpc.py").read_text()
    compile(source, "counter_grpc.py", "exec")
    assert "async def Add(self, input_message: counter_pb2.Amount) -> counter_pb2.Amount.Total:" in source
    assert (
        "def Watch(self, input_message: empty_pb2.Empty) -> AsyncIterator[counter_pb2.Amount.Total]:"
        in source
    )
    assert 'Add to the \\\\ "count".' in source


def test_check_passes_on_what_was_just_written_and_names_each_difference(
    repo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--check` is silent on fresh files, and names edited, missing and left-over ones."""
    run(repo)
    assert run(repo, "--check") == 0
    folder = repo / "whispr" / "testgen"
    (folder / "counter_grpc.py").write_text("edited")
    (folder / "counter_pb2.pyi").unlink()
    (folder / "gone_pb2.py").write_text("left over")
    capsys.readouterr()
    assert run(repo, "--check") == 1
    told = capsys.readouterr().err
    assert all(name in told for name in ("counter_grpc.py", "counter_pb2.pyi", "gone_pb2.py"))
    assert run(repo) == 0
    assert run(repo, "--check") == 0
    assert not (folder / "gone_pb2.py").exists()


def test_a_proto_that_does_not_parse_is_an_error(repo: Path) -> None:
    """Protoc's refusal becomes exit status 2 and leaves the tree alone."""
    (repo / "proto" / "whispr" / "testgen" / "counter.proto").write_text("service {")
    assert run(repo) == 2
    assert not (repo / "whispr").exists()

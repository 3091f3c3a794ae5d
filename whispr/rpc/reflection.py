"""Server reflection, `grpc.reflection.v1` and `v1alpha` (grpc/doc/server-reflection.md).

    server = RpcServer(reflected([auth_handlers, health]))

Answers come out of the descriptor pool that the generated modules fill, and out of the one that holds gRPC's
own services. Both versions of the protocol are the same messages in two packages.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

import purerpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor

from whispr.errors import Code
from whispr.rpc import protos

VERSIONS = ("v1", "v1alpha")


def service_name(version: str) -> str:
    """Full name of the reflection service of a version."""
    return f"grpc.reflection.{version}.ServerReflection"


def reflected(servicers: Iterable[purerpc.Servicer]) -> list[purerpc.Servicer]:
    """`servicers`, and the reflection services that list them and themselves."""
    served = list(servicers)
    names = [servicer.service.name for servicer in served] + [service_name(version) for version in VERSIONS]
    return [*served, *(ReflectionServicer(names, version) for version in VERSIONS)]


class ReflectionServicer(purerpc.Servicer):  # type: ignore[misc]  # purerpc is untyped
    """Says what a server offers, in the form of file descriptors."""

    def __init__(self, services: Iterable[str], version: str = "v1") -> None:
        """`services`: full names of what the server offers."""
        self._services = sorted(services)
        self._name = service_name(version)
        self._response = protos.message(f"grpc.reflection.{version}.ServerReflectionResponse")
        self._pools = (descriptor_pool.Default(), protos.POOL)

    @property
    def service(self) -> purerpc.Service:
        """The one method."""
        return protos.service(self._name, self)

    async def ServerReflectionInfo(self, input_messages: Any) -> AsyncIterator[Any]:  # noqa: N802  # the protocol's name
        """Answer each question as it comes; what is not there is an error message, not the end of the call."""
        sent: set[str] = set()
        async for request in input_messages:
            response = self._response(valid_host=request.host, original_request=request)
            try:
                self._answer(request, response, sent)
            except KeyError:
                asked = request.WhichOneof("message_request")
                what = getattr(request, asked)
                response.error_response.error_code = Code.NOT_FOUND
                response.error_response.error_message = f"{asked}: not found: {str(what).strip()}"
            yield response

    def _answer(self, request: Any, response: Any, sent: set[str]) -> None:
        """Fill in the response. Raises KeyError when nothing here has that name or number."""
        match request.WhichOneof("message_request"):
            case "list_services":
                for name in self._services:
                    response.list_services_response.service.add(name=name)
            case "file_by_filename":
                file = self._find("FindFileByName", request.file_by_filename)
                self._add_files(response, file, sent)
            case "file_containing_symbol":
                self._add_files(response, self._file_with(request.file_containing_symbol), sent)
            case "file_containing_extension":
                asked = request.file_containing_extension
                extendee = self._find("FindMessageTypeByName", asked.containing_type)
                found = self._find("FindExtensionByNumber", extendee, asked.extension_number)
                self._add_files(response, found.file, sent)
            case "all_extension_numbers_of_type":
                extendee = self._find("FindMessageTypeByName", request.all_extension_numbers_of_type)
                answer = response.all_extension_numbers_response
                answer.base_type_name = extendee.full_name
                found = self._find("FindAllExtensions", extendee)
                answer.extension_number.extend(sorted(extension.number for extension in found))
            case _:
                response.error_response.error_code = Code.INVALID_ARGUMENT
                response.error_response.error_message = "the request asks for nothing"

    def _find(self, finder: str, *arguments: Any) -> Any:
        """Ask each pool in turn. Raises KeyError when none knows."""
        for pool in self._pools:
            try:
                return getattr(pool, finder)(*arguments)
            except (KeyError, TypeError):  # TypeError: a descriptor of the other pool
                continue
        raise KeyError(arguments)

    def _file_with(self, symbol: str) -> FileDescriptor:
        """Find the file that defines a symbol; pools know of no methods, only of their services."""
        try:
            found: FileDescriptor = self._find("FindFileContainingSymbol", symbol)
            return found
        except KeyError:
            owner, _, name = symbol.rpartition(".")
            service = self._find("FindServiceByName", owner)
            file: FileDescriptor = service.methods_by_name[name].containing_service.file
            return file

    def _add_files(self, response: Any, file: FileDescriptor, sent: set[str]) -> None:
        """Add a file, and what it imports that this call has not been given yet."""
        for needed in _closure(file):
            if needed is file or needed.name not in sent:
                sent.add(needed.name)
                response.file_descriptor_response.file_descriptor_proto.append(needed.serialized_pb)


def _closure(file: FileDescriptor) -> list[FileDescriptor]:
    """A file and all it imports, the file itself first."""
    found = {file.name: file}
    waiting = [file]
    while waiting:
        for dependency in waiting.pop().dependencies:
            if dependency.name not in found:
                found[dependency.name] = dependency
                waiting.append(dependency)
    return list(found.values())

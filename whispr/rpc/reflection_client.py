"""What a server offers, learnt from the server itself by reflection.

    learnt = Learnt(channel)
    method = await learnt.method("whispr.v1.AuthService", "Login")
    reply = await channel.unary_unary(…, message_class(method.input_type), message_class(method.output_type))(…)

Everything goes into a descriptor pool of its own, so a server's version of a file never meets ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError

from whispr.errors import Code, WhisprError
from whispr.rpc import protos
from whispr.rpc.channel import Channel
from whispr.rpc.reflection import VERSIONS, service_name

FILES_MAX = 1000
"""Files taken from one server."""


class Learnt:
    """A server's descriptors, asked for as they are needed."""

    def __init__(self, channel: Channel, metadata: list[tuple[str, str | bytes]] | None = None) -> None:
        """`metadata` goes with every question."""
        self.pool = descriptor_pool.DescriptorPool()
        self._channel = channel
        self._metadata = metadata or []
        self._versions = list(VERSIONS)
        self._files: set[str] = set()

    async def services(self) -> list[str]:
        """Full names of what the server offers. Raises WhisprError."""
        answer = await self._ask(list_services="*")
        return sorted(service.name for service in answer.list_services_response.service)

    async def symbol(self, name: str) -> Any:
        """The descriptor of a service, method, message, enum, field or extension.

        Raises WhisprError: NOT_FOUND when the server has none of that name, UNIMPLEMENTED when it has no reflection.
        """
        found = self._known(name)
        if found is None:
            await self._learn_symbol(name)
            found = self._known(name)
        if found is None:
            raise WhisprError(Code.NOT_FOUND, f"the server knows no {name}")
        return found

    async def method(self, service: str, name: str) -> MethodDescriptor:
        """A method's descriptor. Raises WhisprError as `symbol` does."""
        found = await self.symbol(service)
        if not isinstance(found, ServiceDescriptor):
            raise WhisprError(Code.NOT_FOUND, f"{service} is not a service")
        method = found.methods_by_name.get(name)
        if method is None:
            raise WhisprError(Code.NOT_FOUND, f"{service} has no method {name!r}")
        return method

    def _known(self, name: str) -> Any:
        """Look in the pool; methods and fields are found through their owners."""
        for finder in (
            "FindServiceByName",
            "FindMessageTypeByName",
            "FindEnumTypeByName",
            "FindExtensionByName",
        ):
            try:
                return getattr(self.pool, finder)(name)
            except KeyError:
                continue
        owner_name, _, own_name = name.rpartition(".")
        for finder, members in (
            ("FindServiceByName", "methods_by_name"),
            ("FindMessageTypeByName", "fields_by_name"),
        ):
            try:
                return getattr(getattr(self.pool, finder)(owner_name), members)[own_name]
            except KeyError:
                continue
        return None

    async def _learn_symbol(self, name: str) -> None:
        """Learn the file with a symbol; some servers know methods only through their service."""
        try:
            await self._learn(name)
        except WhisprError as error:
            if error.code is not Code.NOT_FOUND or "." not in name:
                raise
            try:
                await self._learn(name.rpartition(".")[0])
            except WhisprError:
                raise error from None

    async def _learn(self, symbol: str) -> None:
        """Ask for the file with a symbol and for all it imports, and add them to the pool."""
        came = await self._fetch(file_containing_symbol=symbol)
        while missing := self._imports_of(came.values()) - came.keys():
            if len(self._files) + len(came) > FILES_MAX:
                raise WhisprError(Code.RESOURCE_EXHAUSTED, f"{symbol} needs more than {FILES_MAX} files")
            for name in missing:
                came |= await self._fetch(file_by_filename=name)
                if name not in came:
                    raise WhisprError(Code.INTERNAL, f"the server gave another file than {name}")
        while came:
            ready = [file for file in came.values() if not self._imports_of([file])]
            if not ready:
                raise WhisprError(Code.INTERNAL, f"the server's {next(iter(came))} imports itself")
            for file in ready:
                self._add(file)
                del came[file.name]

    async def _fetch(self, **question: str) -> dict[str, FileDescriptorProto]:
        answer = await self._ask(**question)
        octets = answer.file_descriptor_response.file_descriptor_proto
        try:
            files = [FileDescriptorProto.FromString(file) for file in octets]
        except DecodeError as error:
            raise WhisprError(Code.INTERNAL, "the server gave something else than a file") from error
        return {file.name: file for file in files if file.name not in self._files}

    def _imports_of(self, files: Iterable[FileDescriptorProto]) -> set[str]:
        """Name the imports of `files` that are not in the pool."""
        return {name for file in files for name in file.dependency} - self._files

    def _add(self, file: FileDescriptorProto) -> None:
        try:
            self.pool.AddSerializedFile(file.SerializeToString())
        except TypeError as error:
            raise WhisprError(Code.INTERNAL, f"the server's {file.name} is not valid: {error}") from error
        self._files.add(file.name)

    async def _ask(self, **question: str) -> Any:
        """One question, in the newest version that the server has."""
        while True:
            version = self._versions[0]
            try:
                answer = await self._ask_in(version, question)
            except WhisprError as error:
                if error.code is not Code.UNIMPLEMENTED:
                    raise
                if len(self._versions) == 1:
                    raise WhisprError(Code.UNIMPLEMENTED, "the server has no reflection") from error
                del self._versions[0]
                continue
            if answer.WhichOneof("message_response") == "error_response":
                failure = answer.error_response
                code = Code(failure.error_code) if 0 < failure.error_code <= max(Code) else Code.UNKNOWN
                raise WhisprError(code, failure.error_message)
            return answer

    async def _ask_in(self, version: str, question: dict[str, str]) -> Any:
        package = f"grpc.reflection.{version}"
        request = protos.message(f"{package}.ServerReflectionRequest")
        method = self._channel.stream_stream(
            f"/{service_name(version)}/ServerReflectionInfo",
            request,
            protos.message(f"{package}.ServerReflectionResponse"),
        )
        async with method(metadata=self._metadata) as call:
            await call.send(request(**question))
            await call.done_sending()
            async for answer in call:
                return answer
        raise WhisprError(Code.INTERNAL, "the server's reflection gave no answer")

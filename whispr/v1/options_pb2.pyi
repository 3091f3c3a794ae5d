from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

DESCRIPTOR: _descriptor.FileDescriptor

class Access(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACCESS_UNSPECIFIED: _ClassVar[Access]
    PUBLIC: _ClassVar[Access]
    AUTHENTICATED: _ClassVar[Access]
    SERVICE_ONLY: _ClassVar[Access]
ACCESS_UNSPECIFIED: Access
PUBLIC: Access
AUTHENTICATED: Access
SERVICE_ONLY: Access
ACCESS_FIELD_NUMBER: _ClassVar[int]
access: _descriptor.FieldDescriptor

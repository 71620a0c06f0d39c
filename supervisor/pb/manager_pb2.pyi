from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class RunRequest(_message.Message):
    __slots__ = ("computation",)
    COMPUTATION_FIELD_NUMBER: _ClassVar[int]
    computation: bytes
    def __init__(self, computation: _Optional[bytes] = ...) -> None: ...

class RunResponse(_message.Message):
    __slots__ = ("ID", "computation", "credential")
    ID_FIELD_NUMBER: _ClassVar[int]
    COMPUTATION_FIELD_NUMBER: _ClassVar[int]
    CREDENTIAL_FIELD_NUMBER: _ClassVar[int]
    ID: str
    computation: str
    credential: str
    def __init__(self, ID: _Optional[str] = ..., computation: _Optional[str] = ..., credential: _Optional[str] = ...) -> None: ...

from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class PrepareRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PrepareResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("vm_id", "hostname", "entropy", "unix_time_ns")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    ENTROPY_FIELD_NUMBER: _ClassVar[int]
    UNIX_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    hostname: str
    entropy: bytes
    unix_time_ns: int
    def __init__(self, vm_id: _Optional[str] = ..., hostname: _Optional[str] = ..., entropy: _Optional[bytes] = ..., unix_time_ns: _Optional[int] = ...) -> None: ...

class RenewResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FirstCall(_message.Message):
    __slots__ = ("unix_time_ns", "open_to_all", "computation", "rehearsal")
    UNIX_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    OPEN_TO_ALL_FIELD_NUMBER: _ClassVar[int]
    COMPUTATION_FIELD_NUMBER: _ClassVar[int]
    REHEARSAL_FIELD_NUMBER: _ClassVar[int]
    unix_time_ns: int
    open_to_all: bool
    computation: bytes
    rehearsal: bool
    def __init__(self, unix_time_ns: _Optional[int] = ..., open_to_all: _Optional[bool] = ..., computation: _Optional[bytes] = ..., rehearsal: _Optional[bool] = ...) -> None: ...

class FirstAnswer(_message.Message):
    __slots__ = ("code", "detail", "computation")
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    COMPUTATION_FIELD_NUMBER: _ClassVar[int]
    code: int
    detail: str
    computation: bytes
    def __init__(self, code: _Optional[int] = ..., detail: _Optional[str] = ..., computation: _Optional[bytes] = ...) -> None: ...

from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("instance_id", "state", "running_since_unix_ns", "algorithm_id", "dataset_id", "waiting", "uploads", "last_end")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[StatusResponse.State]
        STATE_IDLE: _ClassVar[StatusResponse.State]
        STATE_RUNNING: _ClassVar[StatusResponse.State]
        STATE_HELD: _ClassVar[StatusResponse.State]
    STATE_UNSPECIFIED: StatusResponse.State
    STATE_IDLE: StatusResponse.State
    STATE_RUNNING: StatusResponse.State
    STATE_HELD: StatusResponse.State
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RUNNING_SINCE_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    ALGORITHM_ID_FIELD_NUMBER: _ClassVar[int]
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    UPLOADS_FIELD_NUMBER: _ClassVar[int]
    LAST_END_FIELD_NUMBER: _ClassVar[int]
    instance_id: str
    state: StatusResponse.State
    running_since_unix_ns: int
    algorithm_id: str
    dataset_id: str
    waiting: int
    uploads: _containers.RepeatedCompositeFieldContainer[UploadProgress]
    last_end: str
    def __init__(self, instance_id: _Optional[str] = ..., state: _Optional[_Union[StatusResponse.State, str]] = ..., running_since_unix_ns: _Optional[int] = ..., algorithm_id: _Optional[str] = ..., dataset_id: _Optional[str] = ..., waiting: _Optional[int] = ..., uploads: _Optional[_Iterable[_Union[UploadProgress, _Mapping]]] = ..., last_end: _Optional[str] = ...) -> None: ...

class UploadProgress(_message.Message):
    __slots__ = ("kind", "received_bytes", "size")
    KIND_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    received_bytes: int
    size: int
    def __init__(self, kind: _Optional[str] = ..., received_bytes: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class SetClockRequest(_message.Message):
    __slots__ = ("unix_time_ns",)
    UNIX_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    unix_time_ns: int
    def __init__(self, unix_time_ns: _Optional[int] = ...) -> None: ...

class SetClockResponse(_message.Message):
    __slots__ = ("moved_ns",)
    MOVED_NS_FIELD_NUMBER: _ClassVar[int]
    moved_ns: int
    def __init__(self, moved_ns: _Optional[int] = ...) -> None: ...

from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class UploadRequest(_message.Message):
    __slots__ = ("kind", "size", "sha256", "chunk", "number")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[UploadRequest.Kind]
        KIND_ALGORITHM: _ClassVar[UploadRequest.Kind]
        KIND_DATASET: _ClassVar[UploadRequest.Kind]
    KIND_UNSPECIFIED: UploadRequest.Kind
    KIND_ALGORITHM: UploadRequest.Kind
    KIND_DATASET: UploadRequest.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    kind: UploadRequest.Kind
    size: int
    sha256: str
    chunk: bytes
    number: int
    def __init__(self, kind: _Optional[_Union[UploadRequest.Kind, str]] = ..., size: _Optional[int] = ..., sha256: _Optional[str] = ..., chunk: _Optional[bytes] = ..., number: _Optional[int] = ...) -> None: ...

class UploadResponse(_message.Message):
    __slots__ = ("id", "size")
    ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    id: str
    size: int
    def __init__(self, id: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...

class ComputeRequest(_message.Message):
    __slots__ = ("time_limit_s", "memory_limit_mib", "datasets")
    TIME_LIMIT_S_FIELD_NUMBER: _ClassVar[int]
    MEMORY_LIMIT_MIB_FIELD_NUMBER: _ClassVar[int]
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    time_limit_s: int
    memory_limit_mib: int
    datasets: int
    def __init__(self, time_limit_s: _Optional[int] = ..., memory_limit_mib: _Optional[int] = ..., datasets: _Optional[int] = ...) -> None: ...

class ComputeResponse(_message.Message):
    __slots__ = ("outcome", "chunk")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    outcome: Outcome
    chunk: bytes
    def __init__(self, outcome: _Optional[_Union[Outcome, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class LastOutcomeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PrintedRequest(_message.Message):
    __slots__ = ("run", "position")
    RUN_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    run: int
    position: int
    def __init__(self, run: _Optional[int] = ..., position: _Optional[int] = ...) -> None: ...

class PrintedResponse(_message.Message):
    __slots__ = ("run", "position", "data")
    RUN_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    run: int
    position: int
    data: bytes
    def __init__(self, run: _Optional[int] = ..., position: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("state", "error", "exit_status", "stdout", "stderr", "algorithm_id", "dataset_ids", "duration_ms", "result_size", "result_sha256")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Outcome.State]
        STATE_SUCCEEDED: _ClassVar[Outcome.State]
        STATE_FAILED: _ClassVar[Outcome.State]
        STATE_TIMED_OUT: _ClassVar[Outcome.State]
        STATE_OUT_OF_MEMORY: _ClassVar[Outcome.State]
        STATE_RESULT_TOO_LARGE: _ClassVar[Outcome.State]
        STATE_CANCELLED: _ClassVar[Outcome.State]
    STATE_UNSPECIFIED: Outcome.State
    STATE_SUCCEEDED: Outcome.State
    STATE_FAILED: Outcome.State
    STATE_TIMED_OUT: Outcome.State
    STATE_OUT_OF_MEMORY: Outcome.State
    STATE_RESULT_TOO_LARGE: Outcome.State
    STATE_CANCELLED: Outcome.State
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    EXIT_STATUS_FIELD_NUMBER: _ClassVar[int]
    STDOUT_FIELD_NUMBER: _ClassVar[int]
    STDERR_FIELD_NUMBER: _ClassVar[int]
    ALGORITHM_ID_FIELD_NUMBER: _ClassVar[int]
    DATASET_IDS_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    RESULT_SIZE_FIELD_NUMBER: _ClassVar[int]
    RESULT_SHA256_FIELD_NUMBER: _ClassVar[int]
    state: Outcome.State
    error: str
    exit_status: int
    stdout: Output
    stderr: Output
    algorithm_id: str
    dataset_ids: _containers.RepeatedScalarFieldContainer[str]
    duration_ms: int
    result_size: int
    result_sha256: str
    def __init__(self, state: _Optional[_Union[Outcome.State, str]] = ..., error: _Optional[str] = ..., exit_status: _Optional[int] = ..., stdout: _Optional[_Union[Output, _Mapping]] = ..., stderr: _Optional[_Union[Output, _Mapping]] = ..., algorithm_id: _Optional[str] = ..., dataset_ids: _Optional[_Iterable[str]] = ..., duration_ms: _Optional[int] = ..., result_size: _Optional[int] = ..., result_sha256: _Optional[str] = ...) -> None: ...

class Output(_message.Message):
    __slots__ = ("tail", "dropped_bytes")
    TAIL_FIELD_NUMBER: _ClassVar[int]
    DROPPED_BYTES_FIELD_NUMBER: _ClassVar[int]
    tail: bytes
    dropped_bytes: int
    def __init__(self, tail: _Optional[bytes] = ..., dropped_bytes: _Optional[int] = ...) -> None: ...

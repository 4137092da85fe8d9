"""Bytes of a run and back: what the store keeps.

Every value is `version (1 byte) | CRC-32 (4 bytes, big endian) | body`. The checksum starts from a
number of its own for each kind of value, so a step that is read as a header is refused as well as
a flipped bit. The body is msgpack, of definitions JSON; steps are arrays (fields are only ever
appended, with defaults), everything else maps without defaults. The body of a finished run is one
zlib stream, its header and head first, so that a list reads them without unpacking the steps.

Guarantees: what `encode_x` makes, `decode_x` of this and every later version gives back (how:
`upgrades`); anything else raises `SnapshotCorruptError` or `SnapshotVersionError`, never a wrong
value. Stored forms of all versions are kept in tests/golden. Pure functions, callable on any
thread.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from pilotage.persistence.port import StoreError
from pilotage.persistence.upgrades import upgraded
from pilotage.runtime.effects import Message
from pilotage.runtime.state import RunHead, RunVitals, StepState, chunked

SCHEMA_VERSION: Final = 1
_VERSION: Final = bytes([SCHEMA_VERSION])
_FRAME: Final = 5

# The start values of the checksums. Never reuse a number.
_HEAD: Final = 1
_VITALS: Final = 2
_STEP: Final = 3
_FINISHED: Final = 4
_MESSAGE: Final = 5
_HISTORY: Final = 6
_RECORD: Final = 7
_DEFINITION: Final = 8
_NAMES: Final = {
    _HEAD: "run head",
    _VITALS: "run vitals",
    _STEP: "step state",
    _FINISHED: "finished run",
    _MESSAGE: "outbox message",
    _HISTORY: "history item",
    _RECORD: "record",
    _DEFINITION: "definition",
}
_ALONE: Final = (_NAMES[_RECORD], _NAMES[_DEFINITION])
"""What is not part of a run."""
# Measured on finished runs of 5, 40 and 500 steps: level 1 takes 30, 60 and 800 µs and saves half
# to two thirds; level 6 saves 1 to 5 % more and takes up to eight times as long.
_ZLIB_LEVEL: Final = 1
_SMALL: Final = 4_096
_SMALL_WINDOW, _SMALL_MEMORY = 12, 5
"""Binary logarithm of the window, and zlib's measure for its tables (1 to 9)."""
_LENGTHS: Final = 8
"""Two big endian numbers of four bytes before the parts: length of the vitals, of the head."""

T = TypeVar("T")
Chunks = tuple[tuple[StepState, ...], ...]

_encode = msgspec.msgpack.Encoder().encode
_decode_head = msgspec.msgpack.Decoder(RunHead).decode
_decode_vitals = msgspec.msgpack.Decoder(RunVitals).decode
_decode_step = msgspec.msgpack.Decoder(StepState).decode
_decode_steps = msgspec.msgpack.Decoder(list[StepState]).decode
_decode_message: Callable[[bytes], Message] = msgspec.msgpack.Decoder[Any](Message).decode
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}
"""One a type; as many as the program has types that it stores."""
_crc = zlib.crc32


class SnapshotError(StoreError):
    """A stored value cannot be read. `what` names the kind of value."""

    def __init__(self, what: str, message: str) -> None:
        super().__init__(message)
        self.what = what


class SnapshotCorruptError(SnapshotError):
    """The bytes are not what was written."""

    def __init__(self, what: str, why: str) -> None:
        instead = "make it anew" if what in _ALONE else "discard the run"
        super().__init__(
            what,
            f"stored {what} is damaged ({why}); keep a copy of the store and restore it from a "
            f"backup, or {instead}",
        )
        self.why = why


class SnapshotVersionError(SnapshotError):
    """The value was written by a newer version of this package."""

    def __init__(self, what: str, version: int) -> None:
        super().__init__(
            what,
            f"stored {what} has schema version {version}, this version reads up to "
            f"{SCHEMA_VERSION}: start the newer version that wrote it, or restore a backup made "
            "before the upgrade",
        )
        self.version = version


class FinishedRun(NamedTuple):
    """The parts of a finished run's one value."""

    head: RunHead
    vitals: RunVitals
    chunks: Chunks


def _seal(kind: int, body: bytes) -> bytes:
    return _VERSION + _crc(body, kind).to_bytes(4, "big") + body


def _open(kind: int, data: bytes) -> bytes:
    """The body, after version and checksum have been found right."""
    if len(data) <= _FRAME:
        raise SnapshotCorruptError(_NAMES[kind], f"only {len(data)} bytes")
    _check_version(kind, data)
    body = data[_FRAME:]
    if _crc(body, kind).to_bytes(4, "big") != data[1:_FRAME]:
        raise SnapshotCorruptError(_NAMES[kind], "wrong checksum")
    return body


def _check_version(kind: int, data: bytes) -> None:
    if data[0] > SCHEMA_VERSION:
        raise SnapshotVersionError(_NAMES[kind], data[0])
    if data[0] == 0:
        raise SnapshotCorruptError(_NAMES[kind], "no schema version")


def _unfit(kind: int, error: Exception) -> SnapshotCorruptError:
    """The checksum is right and the content is not: written by something that is not ours."""
    return SnapshotCorruptError(_NAMES[kind], f"does not fit its type: {error}")


def _decoded(kind: int, name: str, data: bytes, decode: Callable[[bytes], T]) -> T:
    """`name` is what the table of upgrades calls the type that `decode` makes."""
    body = _open(kind, data)
    try:
        if data[0] != SCHEMA_VERSION:
            body = _encode(_upgraded(kind, name, data[0], msgspec.msgpack.decode(body)))
        return decode(body)
    except msgspec.MsgspecError as error:
        raise _unfit(kind, error) from error


def _upgraded(kind: int, name: str, version: int, raw: Any) -> Any:
    try:
        return upgraded(raw, name, version, SCHEMA_VERSION)
    except Exception as error:
        raise SnapshotCorruptError(
            _NAMES[kind],
            f"its form of schema version {version} cannot be upgraded: "
            f"{type(error).__name__}: {error}",
        ) from error


def encode_head(head: RunHead) -> bytes:
    return _seal(_HEAD, _encode(head))


def decode_head(data: bytes) -> RunHead:
    return _decoded(_HEAD, "RunHead", data, _decode_head)


def encode_vitals(vitals: RunVitals) -> bytes:
    body = _encode(vitals)
    return _VERSION + _crc(body, _VITALS).to_bytes(4, "big") + body


def decode_vitals(data: bytes) -> RunVitals:
    return _decoded(_VITALS, "RunVitals", data, _decode_vitals)


def encode_step(step: StepState) -> bytes:
    body = _encode(step)
    return _VERSION + _crc(body, _STEP).to_bytes(4, "big") + body


def decode_step(data: bytes) -> StepState:
    return _decoded(_STEP, "StepState", data, _decode_step)


def encode_message(message: Message) -> bytes:
    return _seal(_MESSAGE, _encode(message))


def decode_message(data: bytes) -> Message:
    return _decoded(_MESSAGE, "Message", data, _decode_message)


def encode_history(item: msgspec.Struct) -> bytes:
    """An item of a run's history: an event, or what the caller makes of one."""
    return _seal(_HISTORY, _encode(item))


def decode_history(data: bytes, as_type: type[T]) -> T:
    return _decode_as(_HISTORY, data, as_type)


def encode_record(value: msgspec.Struct) -> bytes:
    """An execution record, an API key, an idempotency answer: any struct stored on its own."""
    return _seal(_RECORD, _encode(value))


def decode_record(data: bytes, as_type: type[T]) -> T:
    return _decode_as(_RECORD, data, as_type)


def encode_definition(value: msgspec.Struct) -> bytes:
    """A workflow, version or job. JSON: what people wrote may have integers of any size."""
    return _seal(_DEFINITION, msgspec.json.encode(value))


def decode_definition(data: bytes, as_type: type[T]) -> T:
    body = _open(_DEFINITION, data)
    try:
        if data[0] != SCHEMA_VERSION:
            raw = msgspec.json.decode(body)
            body = msgspec.json.encode(_upgraded(_DEFINITION, as_type.__name__, data[0], raw))
        return msgspec.json.decode(body, type=as_type)
    except msgspec.MsgspecError as error:
        raise _unfit(_DEFINITION, error) from error


def encode_finished(head: RunHead, vitals: RunVitals, chunks: Chunks) -> bytes:
    """A whole run in one compressed value.

    Cost follows the size of the outputs (about 20 MB/s): above some hundred kilobytes call it on
    a worker thread; zlib releases the GIL.
    """
    head_part, vitals_part = encode_head(head), encode_vitals(vitals)
    steps = _encode([step for chunk in chunks for step in chunk])
    lengths = len(vitals_part).to_bytes(4, "big") + len(head_part).to_bytes(4, "big")
    return _seal(_FINISHED, _compressed(lengths + vitals_part + head_part + steps))


def _compressed(data: bytes) -> bytes:
    """One zlib stream. What is small gets a window and tables of its size: to make the full ones,
    a quarter of a megabyte, takes longer than to compress it (20 µs against 6, the same result).
    """
    if len(data) > _SMALL:
        return zlib.compress(data, _ZLIB_LEVEL)
    stream = zlib.compressobj(_ZLIB_LEVEL, zlib.DEFLATED, _SMALL_WINDOW, _SMALL_MEMORY)
    return stream.compress(data) + stream.flush()


def decode_finished(blob: bytes) -> FinishedRun:
    body = _open(_FINISHED, blob)
    try:
        plain = zlib.decompress(body)
        vitals_end, head_end = _bounds(plain)
        return FinishedRun(
            decode_head(plain[vitals_end:head_end]),
            decode_vitals(plain[_LENGTHS:vitals_end]),
            chunked(_decode_steps(_present_steps(blob[0], plain[head_end:]))),
        )
    except (zlib.error, msgspec.MsgspecError) as error:
        raise _unfit(_FINISHED, error) from error


def _present_steps(version: int, steps: bytes) -> bytes:
    if version == SCHEMA_VERSION:
        return steps
    raw = msgspec.msgpack.decode(steps)
    return _encode([_upgraded(_FINISHED, "StepState", version, step) for step in raw])


def finished_head(prefix: bytes) -> bytes | None:
    """The encoded head out of the first bytes of a finished run; None: more bytes are needed.

    The checksum of the whole cannot be tested on a part; the head has its own.
    """
    if len(prefix) <= _FRAME:
        return None
    _check_version(_FINISHED, prefix)
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(prefix[_FRAME:], 1024)
        if len(plain) < _LENGTHS:
            return None
        vitals_end, head_end = _bounds(plain)
        if head_end > len(plain):
            plain += stream.decompress(stream.unconsumed_tail, head_end - len(plain))
    except zlib.error as error:
        raise _unfit(_FINISHED, error) from error
    return plain[vitals_end:head_end] if head_end <= len(plain) else None


def salvaged_head(blob: bytes) -> bytes | None:
    """The encoded head of a finished run that is damaged somewhere behind it, if it is there."""
    stream, plain = zlib.decompressobj(), b""
    piece = max(1, len(blob) >> 12)  # what is in the same piece as the damage is lost with it
    try:
        for start in range(_FRAME, len(blob), piece):
            plain += stream.decompress(blob[start : start + piece])
            if len(plain) >= _LENGTHS and _bounds(plain)[1] <= len(plain):
                break
    except zlib.error:
        pass
    if len(plain) < _LENGTHS:
        return None
    vitals_end, head_end = _bounds(plain)
    return plain[vitals_end:head_end]


def _bounds(plain: bytes) -> tuple[int, int]:
    """Where the vitals and the head end."""
    vitals_end = _LENGTHS + int.from_bytes(plain[:4], "big")
    return vitals_end, vitals_end + int.from_bytes(plain[4:_LENGTHS], "big")


def _decode_as(kind: int, data: bytes, as_type: type[T]) -> T:
    decoder = _decoders.get(as_type)
    if decoder is None:
        decoder = _decoders[as_type] = msgspec.msgpack.Decoder(as_type)
    decoded: T = _decoded(kind, as_type.__name__, data, decoder.decode)
    return decoded

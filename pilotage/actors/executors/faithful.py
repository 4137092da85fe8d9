"""What a job gives as JSON text that says the same, or the reason why it cannot.

The codec writes what JSON does not have as something else (`NaN` as `null`) and reads an object
with the same key twice as one without the first. Nothing of that is kept: the answer is refused.
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec

from pilotage.runtime.jsonvalues import (
    MAX_OUTPUT_DEPTH,
    is_array,
    is_object,
    repeated_key,
    show,
)

TOO_DEEP = (
    f"output has arrays and objects nested more than {MAX_OUTPUT_DEPTH} deep; it cannot be kept"
)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_check = msgspec.json.Decoder(msgspec.Raw).decode
_DOUBTFUL = re.compile(rb'null|\\u[dD]|"-?[0-9][0-9.eE+-]*":|[eE]\+?[0-9]{3}|[0-9]{4000}')
"""What `NaN`, keys that are numbers, and text that is passed through (`msgspec.Raw`) may become."""


def faithful_json(value: Any) -> bytes:
    """The value as JSON text. Raises whatever the types in it raise, ValueError for what would be
    another value when it is read again, RecursionError when it is nested too deep.
    """
    text = _encode(value)
    _check(text)  # of what is passed through, too
    if not text.isascii():
        text.decode()
    if _DOUBTFUL.search(text) is not None:
        _refuse_repeated(text, _decode(text))
        _refuse_infinite(value)
    return text


def faithful_copy(body: bytes) -> bytes:
    """A JSON text in the one spelling that is stored. Raises as `faithful_json`."""
    value = _decode(body)
    _refuse_repeated(body, value)
    return _encode(value)


def _refuse_repeated(text: bytes, value: Any) -> None:
    key = repeated_key(text, value)
    if key is not None:
        raise ValueError(f"the key {show(key)} is there twice in one object")


def _refuse_infinite(value: Any) -> None:
    try:
        plain = msgspec.to_builtins(value)
    except TypeError:  # text that is passed through has no such numbers, what is around it may
        plain = msgspec.to_builtins(value, enc_hook=_nothing)
    stack = [plain]
    while stack:
        item = stack.pop()
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"JSON has no number {item}")
        if is_object(item):
            stack.extend(item.values())
        elif is_array(item):
            stack.extend(item)


def _nothing(_: Any) -> None:
    return None

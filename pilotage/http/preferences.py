"""The header `Prefer` (RFC 7240): what a client would like, and how it is told that it got it."""

from __future__ import annotations

import re

APPLIED = {"Preference-Applied": "return=representation"}

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = rb'"((?:[^"\\]|\\.)*)"'
_ITEM = re.compile(rb'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+', re.DOTALL)
"""Up to a comma that stands outside of quotes."""
_NAMED = re.compile(
    rb"\s*(" + _TOKEN + rb")(?:\s*=\s*(?:(" + _TOKEN + rb")|" + _QUOTED + rb"))?\s*(?:;.*)?\Z",
    re.DOTALL,
)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)


def preferred(header: bytes, name: bytes) -> bytes | None:
    """The value of the preference `name`, in small letters; the first of several holds.

    `header`: the values of all headers of the name, joined by commas. What is malformed is
    overlooked, as the RFC has it.
    """
    for item in _ITEM.findall(header):
        found = _NAMED.match(item)
        if found is not None and found[1].lower() == name:
            quoted: bytes | None = found[3]
            value: bytes = found[2] or b"" if quoted is None else _ESCAPED.sub(rb"\1", quoted)
            return value.lower()
    return None

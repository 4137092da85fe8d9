"""Hypothesis strategies for JSON, hostile text, templates, conditions and definitions."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
)
JSON: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=12,
)

# Any Python text, lone surrogates and NUL included.
ANY_TEXT = st.text(
    st.characters(exclude_categories=()) | st.sampled_from("\0\ud800{}[]|.'\""), max_size=30
)

# What a Python caller or a YAML file may hand over: not always JSON.
GARBAGE: st.SearchStrategy[Any] = st.recursive(
    SCALARS | ANY_TEXT | st.floats() | st.binary(max_size=3) | st.dates() | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(ANY_TEXT | st.integers() | st.none(), inner, max_size=4)
    ),
    max_leaves=12,
)

_PIECES = st.sampled_from(
    [
        "{{", "}}", "{{ ", " }}", "payload", "steps", "run", "output", "status", "tags", "id", "a",
        "b-c", ".", "[", "]", "[0]", "[-1]", '["k"]', "|", "default", ":", "1", "null", "true", '"',
        "'", '"x"', "'y'", "{", "}", "\\", " ", "\n", "\0", "\ud800", "ä", "🙂", "1e999", "NaN",
    ]
)  # fmt: skip
TEMPLATE_TEXT = st.lists(_PIECES, max_size=12).map("".join) | ANY_TEXT

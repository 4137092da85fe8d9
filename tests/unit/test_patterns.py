from __future__ import annotations

import pytest

from pilotage.runtime.patterns import (
    MAX_MATCH_WORK,
    MAX_PATTERN_CHARS,
    MAX_SUBJECT_CHARS,
    PatternError,
    compile_pattern,
    is_found,
)


def test_a_pattern_is_found_anywhere_unless_it_is_anchored() -> None:
    assert is_found(compile_pattern("b+"), "abbc")
    assert not is_found(compile_pattern("^b+$"), "abbc")
    assert is_found(compile_pattern("^ä.$"), "äö")


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(", "bad pattern: missing )"),
        (r"(a)\1", "bad pattern: invalid escape sequence"),
        ("(?=a)", "bad pattern: invalid perl operator"),
        ("(x{500}){500}", "bad pattern"),
        ("a" * (MAX_PATTERN_CHARS + 1), f"longer than {MAX_PATTERN_CHARS} characters"),
        ("\ud800", "not valid Unicode"),
    ],
)
def test_what_is_no_pattern_is_refused(pattern: str, why: str) -> None:
    with pytest.raises(PatternError) as caught:
        compile_pattern(pattern)
    assert why in str(caught.value)


def test_the_text_is_bounded() -> None:
    pattern = compile_pattern("b")
    assert not is_found(pattern, "a" * MAX_SUBJECT_CHARS)
    with pytest.raises(PatternError, match=f"longer than {MAX_SUBJECT_CHARS} characters"):
        is_found(pattern, "a" * (MAX_SUBJECT_CHARS + 1))


def test_the_work_of_a_match_is_bounded() -> None:
    pattern = compile_pattern(".{0,100}" * 20 + "Z$")
    fits = MAX_MATCH_WORK // pattern.programsize
    assert not is_found(pattern, "a" * fits)
    with pytest.raises(PatternError, match="too large"):
        is_found(pattern, "a" * (fits + 1))


def test_a_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(PatternError, match="not valid Unicode"):
        is_found(compile_pattern("a"), "\udc00")

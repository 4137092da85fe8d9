"""Key names: one hash tag, an order that is the order of lists."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, strategies as st

from pilotage.persistence.keys import STATUS_LETTER, Keys, digest, position, sort_key
from pilotage.runtime.ids import make_run_id
from pilotage.runtime.status import ACTIVE_RUN, RunStatus

TIMES = st.integers(0, (1 << 48) - 1)
IDS = st.builds(make_run_id, TIMES, st.integers(0, (1 << 30) - 1))


@given(st.tuples(TIMES, IDS), st.tuples(TIMES, IDS))
def test_sort_keys_order_like_what_they_are_made_of(
    one: tuple[int, str], other: tuple[int, str]
) -> None:
    assert (sort_key(*one) < sort_key(*other)) is (one < other)
    assert position(sort_key(*one)) == one


def test_every_key_has_the_hash_tag_of_its_shard() -> None:
    keys = Keys("name", shard=3)
    made = [
        keys.fence,
        keys.lease,
        keys.active,
        keys.expire,
        keys.run("r"),
        keys.outbox("r"),
        keys.history("r"),
        keys.job_runs("r"),
        keys.index("p"),
        keys.workflow_index("p", "w"),
        keys.tag_index("p", "a:{b}"),
        keys.busy("w"),
        keys.answer("p", "k"),
        keys.answers("p"),
        keys.record("k", "i"),
        keys.slugs("k", "p"),
        keys.records("k", None),
        keys.records("k", "p"),
        *keys.events("p"),
        keys.secret("s"),
    ]
    assert len(set(made)) == len(made)
    # The slot of a key is that of its first pair of braces.
    assert {re.search(r"\{(.*?)\}", key)[1] for key in made} == {"s3"}  # type: ignore[index]


@pytest.mark.parametrize("namespace", ["", "a{b", "a}", "a b", "*", "a\nb"])
def test_a_namespace_that_would_spoil_keys_is_refused(namespace: str) -> None:
    with pytest.raises(ValueError, match="namespace"):
        Keys(namespace)


def test_each_status_has_a_letter_and_the_script_knows_the_active_ones() -> None:
    from pilotage.persistence.scripts_runs import COMMIT

    assert set(STATUS_LETTER) == set(RunStatus)
    assert len(set(STATUS_LETTER.values())) == len(RunStatus)
    active = re.search(r"ACTIVE = \{(.*?)\}", COMMIT.text)
    assert active is not None
    assert set(re.findall(r"(\w) = true", active[1])) == {STATUS_LETTER[s] for s in ACTIVE_RUN}


def test_digests_have_one_length() -> None:
    assert {len(digest(text)) for text in ("", "a", "ü" * 5_000)} == {32}
    assert digest("a") != digest("b")

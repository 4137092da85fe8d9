from __future__ import annotations

import pytest

from pilotage.actors.executors.tokens import RunTokens
from pilotage.runtime.ids import job_run_id, make_run_id

NOW_MS = 1_700_000_000_000
RUN = make_run_id(NOW_MS, 12345)
JOB_RUN = job_run_id(RUN, 3, 1)
TOKENS = RunTokens(b"s" * 32)
TOKEN = TOKENS.sign(JOB_RUN, NOW_MS, 300)


def test_a_token_is_good_for_its_attempt() -> None:
    assert TOKENS.verify(TOKEN, JOB_RUN, NOW_MS)


def test_a_token_is_good_until_the_timeout_and_an_hour_more() -> None:
    last_ms = NOW_MS + (300 + 3600) * 1000
    assert TOKENS.verify(TOKEN, JOB_RUN, last_ms - 1)
    assert not TOKENS.verify(TOKEN, JOB_RUN, last_ms)


def test_a_token_that_has_expired_is_still_known_to_be_ours() -> None:
    assert TOKENS.signed(TOKEN, JOB_RUN)
    assert not TOKENS.signed(TOKEN, job_run_id(RUN, 3, 2))
    assert not TOKENS.signed(TOKEN[:-1] + "!", JOB_RUN)


@pytest.mark.parametrize(
    "other",
    [job_run_id(RUN, 3, 2), job_run_id(RUN, 4, 1), job_run_id(make_run_id(NOW_MS, 1), 3, 1)],
    ids=["attempt", "step", "run"],
)
def test_a_token_is_bound_to_run_step_and_attempt(other: str) -> None:
    assert not TOKENS.verify(TOKEN, other, NOW_MS)


def test_a_token_of_another_installation_is_refused() -> None:
    assert not RunTokens(b"t" * 32).verify(TOKEN, JOB_RUN, NOW_MS)


@pytest.mark.parametrize("position", range(len(TOKEN)))
def test_changing_any_character_makes_a_token_worthless(position: int) -> None:
    changed = TOKEN[:position] + ("A" if TOKEN[position] != "A" else "B") + TOKEN[position + 1 :]
    assert not TOKENS.verify(changed, JOB_RUN, NOW_MS)


@pytest.mark.parametrize("token", ["", ".", "...", "v1", "v1.x.1.", "é" * 40, "x" * 10_000])
def test_garbage_is_refused_quietly(token: str) -> None:
    assert not TOKENS.verify(token, JOB_RUN, NOW_MS)


def test_the_same_attempt_delivered_again_gets_an_equally_good_token() -> None:
    again = TOKENS.sign(JOB_RUN, NOW_MS + 60_000, 300)
    assert TOKENS.verify(TOKEN, JOB_RUN, NOW_MS + 60_000)
    assert TOKENS.verify(again, JOB_RUN, NOW_MS + 60_000)


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="must have 32 bytes, not 5"):
        RunTokens(b"short")

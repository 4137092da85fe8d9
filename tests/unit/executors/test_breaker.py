from __future__ import annotations

import pytest

from pilotage.actors.executors import breaker as module
from pilotage.actors.executors.breaker import FORGET_SECS, Admission, Breaker

HOST = "example.org:80"


def opened(at: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(5):
        assert breaker.admit(HOST, at) is Admission.GO
        breaker.failed(HOST, at)
    return breaker


def test_four_failures_leave_it_closed_and_the_fifth_opens_it() -> None:
    breaker = Breaker()
    for _ in range(4):
        breaker.failed(HOST, 0)
    assert breaker.admit(HOST, 0) is Admission.GO
    breaker.failed(HOST, 0)
    assert breaker.admit(HOST, 0) is Admission.WAIT
    assert breaker.wait_secs(HOST, 10) == 20
    assert breaker.failures(HOST) == 5


def test_an_answer_in_between_starts_the_count_anew() -> None:
    breaker = Breaker()
    for _ in range(4):
        breaker.failed(HOST, 0)
    breaker.succeeded(HOST)
    for _ in range(4):
        breaker.failed(HOST, 0)
    assert breaker.admit(HOST, 0) is Admission.GO


def test_hosts_do_not_share_a_breaker() -> None:
    assert opened().admit("other:80", 0) is Admission.GO


def test_after_thirty_seconds_one_probe_goes_out() -> None:
    breaker = opened()
    assert breaker.admit(HOST, 29.9) is Admission.WAIT
    assert breaker.admit(HOST, 30) is Admission.PROBE
    assert breaker.admit(HOST, 30) is Admission.WAIT
    assert breaker.wait_secs(HOST, 30) is None


def test_a_probe_that_connects_closes_it() -> None:
    breaker = opened()
    breaker.admit(HOST, 30)
    breaker.succeeded(HOST)
    assert breaker.admit(HOST, 30) is Admission.GO
    assert len(breaker) == 0


def test_a_probe_that_fails_opens_it_for_another_thirty_seconds() -> None:
    breaker = opened()
    breaker.admit(HOST, 30)
    breaker.failed(HOST, 31, probe=True)
    assert breaker.admit(HOST, 60.9) is Admission.WAIT
    assert breaker.admit(HOST, 61) is Admission.PROBE


def test_a_withdrawn_probe_leaves_its_place_to_the_next() -> None:
    breaker = opened()
    breaker.admit(HOST, 30)
    breaker.withdrawn(HOST)
    assert breaker.admit(HOST, 30) is Admission.PROBE


def test_stragglers_that_fail_while_it_is_open_extend_nothing() -> None:
    breaker = opened()
    breaker.failed(HOST, 20)
    assert breaker.admit(HOST, 30) is Admission.PROBE
    breaker.failed(HOST, 30)
    assert breaker.admit(HOST, 30) is Admission.WAIT, "the probe is still under way"


def test_old_failures_do_not_count() -> None:
    breaker = Breaker()
    for _ in range(4):
        breaker.failed(HOST, 0)
    breaker.failed(HOST, FORGET_SECS + 1)
    assert breaker.failures(HOST) == 1


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HOSTS", 3)
    breaker = Breaker()
    for i in range(10):
        breaker.failed(f"host{i}:80", 0)
    assert len(breaker) == 3
    assert breaker.failures("host9:80") == 1


def test_withdrawing_from_a_forgotten_host_is_harmless() -> None:
    breaker = Breaker()
    breaker.withdrawn(HOST)
    assert breaker.wait_secs(HOST, 0) == 0
    assert breaker.failures(HOST) == 0

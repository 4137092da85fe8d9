from __future__ import annotations

from pilotage.http import limits
from pilotage.http.limits import FailureLimit, RateLimit


class HandClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_minute_has_its_number_of_requests_in_any_distribution() -> None:
    clock = HandClock()
    limit = RateLimit(6, clock)
    assert [limit.take("a") for _ in range(6)] == [0] * 6
    assert limit.take("a") == 10  # one more every ten seconds
    clock.now += 9.9
    assert limit.take("a") == 1
    clock.now += 0.1
    assert limit.take("a") == 0
    assert limit.take("a") == 10
    clock.now += 3600
    assert [limit.take("a") for _ in range(7)] == [0] * 6 + [10]


def test_names_are_counted_apart() -> None:
    limit = RateLimit(1, HandClock())
    assert limit.take("a") == 0
    assert limit.take("b") == 0
    assert limit.take("a") == 60


def test_zero_is_no_limit() -> None:
    limit = RateLimit(0, HandClock())
    assert all(limit.take("a") == 0 for _ in range(1000))


def test_what_is_remembered_is_bounded() -> None:
    clock = HandClock()
    limit = FailureLimit(1, clock)
    for n in range(limits.MAX_TRACKED + 10):
        assert limit.failed(f"address {n}") == 0
    assert limit.failed(f"address {limits.MAX_TRACKED}") > 0
    assert limit.failed("address 0") == 0  # forgotten long ago

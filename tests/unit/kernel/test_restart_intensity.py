"""How often an actor may be restarted, and after which delay."""

from __future__ import annotations

import pytest

from pilotage.actors.kernel import RestartIntensity


def test_it_gives_up_beyond_the_number_of_restarts_in_the_window() -> None:
    intensity = RestartIntensity(3, 5.0)
    assert [intensity.next_delay(now) for now in (0.0, 1.0, 2.0)] == [0.0, 0.0, 0.0]
    assert intensity.next_delay(3.0) is None
    assert intensity.recent(3.0) == 3


def test_restarts_leave_the_window_when_they_are_as_old_as_it() -> None:
    intensity = RestartIntensity(1, 5.0)
    assert intensity.next_delay(0.0) == 0.0
    assert intensity.next_delay(4.999) is None
    assert intensity.recent(5.0) == 0
    assert intensity.next_delay(5.0) == 0.0


def test_giving_up_is_not_counted_as_a_restart() -> None:
    intensity = RestartIntensity(2, 10.0)
    intensity.next_delay(0.0)
    intensity.next_delay(9.0)
    for now in (9.1, 9.2, 9.9):
        assert intensity.next_delay(now) is None
    assert intensity.next_delay(10.0) is not None


def test_the_delay_doubles_from_the_second_restart_on_up_to_its_bound() -> None:
    intensity = RestartIntensity(100, 1e9, base_delay_secs=0.5, max_delay_secs=3.0)
    delays = [intensity.next_delay(float(now)) for now in range(100)]
    assert delays[:6] == [0.0, 0.5, 1.0, 2.0, 3.0, 3.0]
    assert set(delays[5:]) == {3.0}


def test_after_a_quiet_window_the_delay_starts_anew() -> None:
    intensity = RestartIntensity(10, 5.0, base_delay_secs=1.0)
    assert [intensity.next_delay(0.0), intensity.next_delay(0.1)] == [0.0, 1.0]
    assert intensity.next_delay(100.0) == 0.0


def test_no_restart_at_all_may_be_wanted() -> None:
    assert RestartIntensity(0, 5.0).next_delay(0.0) is None


@pytest.mark.parametrize(
    ("max_restarts", "window_secs", "base", "longest"),
    [(-1, 5.0, 0.0, 1.0), (1, 0.0, 0.0, 1.0), (1, 5.0, -0.1, 1.0), (1, 5.0, 0.0, -1.0)],
)
def test_impossible_settings_are_refused(
    max_restarts: int, window_secs: float, base: float, longest: float
) -> None:
    with pytest.raises(ValueError, match="window_secs"):
        RestartIntensity(max_restarts, window_secs, base_delay_secs=base, max_delay_secs=longest)

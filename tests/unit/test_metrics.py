from __future__ import annotations

import pytest

from pilotage.actors import metrics as module
from pilotage.actors.metrics import Metrics


def test_the_text_has_help_type_and_every_series() -> None:
    metrics = Metrics()
    late = metrics.counter("late_total", "Late results.")
    asked = metrics.counter("asked_total", "Asked, by\nroute.", ("route",))
    asked.inc("/a")
    asked.inc("/a", by=2)
    asked.inc('/"b\\')
    metrics.gauge("active", "Active runs.").ask(lambda: 7)
    held = metrics.gauge("held", "Held.", ("job",))
    held.set(1.5, "x")
    seconds = metrics.histogram("seconds", "Time.", buckets=(0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 30):
        seconds.observe(value)
    assert metrics.text() == (
        "# HELP active Active runs.\n# TYPE active gauge\nactive 7\n"
        "# HELP asked_total Asked, by\\nroute.\n# TYPE asked_total counter\n"
        'asked_total{route="/a"} 3\nasked_total{route="/\\"b\\\\"} 1\n'
        "# HELP held Held.\n# TYPE held gauge\n"
        'held{job="x"} 1.5\n'
        "# HELP late_total Late results.\n# TYPE late_total counter\nlate_total 0\n"
        "# HELP seconds Time.\n# TYPE seconds histogram\n"
        'seconds_bucket{le="0.1"} 2\nseconds_bucket{le="1"} 3\nseconds_bucket{le="+Inf"} 4\n'
        "seconds_sum 30.65\nseconds_count 4\n"
    )
    assert late.value() == 0
    assert asked.value("/a") == 3


def test_the_number_of_series_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SERIES", 2)
    asked = Metrics().counter("asked_total", "Asked.", ("who",))
    for n in range(5):
        asked.inc(f"n{n}")
    asked.inc("n0")
    assert (asked.value("n0"), asked.value("n1"), asked.value("other")) == (2, 1, 3)


def test_a_name_is_one_metric() -> None:
    metrics = Metrics()
    assert metrics.counter("a_total", "A.") is metrics.counter("a_total", "A.")
    with pytest.raises(ValueError, match="a_total is there already, as counter"):
        metrics.gauge("a_total", "A.")
    with pytest.raises(ValueError, match="labels"):
        metrics.counter("b_total", "B.", ("x",)).inc()

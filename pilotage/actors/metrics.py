"""Counters, gauges and histograms of this process, and their text for Prometheus.

Everything runs on one event loop, so nothing is locked. Label values must come from closed sets
(a route, a status, never an id): a metric refuses more than `MAX_SERIES` of them and counts the
rest under the label value `other`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

CONTENT_TYPE = "text/plain; version=0.0.4"
MAX_SERIES = 1_000
SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds: from one store round trip to what a person calls broken."""

_Labels = tuple[str, ...]


class Metric:
    """What all kinds have in common: a name, a help text, label names."""

    kind = "untyped"

    def __init__(self, name: str, help_text: str, labels: Sequence[str] = ()) -> None:
        self.name = name
        self.help_text = help_text
        self.labels = tuple(labels)

    def samples(self) -> Iterator[tuple[str, Mapping[str, str], float]]:
        """(name, labels, value) of every series."""
        raise NotImplementedError

    def _admit(self, values: _Labels, known: Mapping[_Labels, object]) -> _Labels:
        if len(values) != len(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}, not {values}")
        if values in known or len(known) < MAX_SERIES:
            return values
        return ("other",) * len(values)

    def _named(self, values: _Labels) -> dict[str, str]:
        return dict(zip(self.labels, values, strict=True))


class Counter(Metric):
    """A sum that only grows. Name it `…_total`."""

    kind = "counter"

    def __init__(self, name: str, help_text: str, labels: Sequence[str] = ()) -> None:
        super().__init__(name, help_text, labels)
        self._values: dict[_Labels, float] = {} if labels else {(): 0.0}
        self._ask: Callable[[], float] | None = None

    def ask(self, function: Callable[[], float]) -> None:
        """Take the value from `function`, which counts itself; for a counter without labels."""
        self._ask = function

    def inc(self, *labels: str, by: float = 1.0) -> None:
        key = self._admit(labels, self._values)
        self._values[key] = self._values.get(key, 0.0) + by

    def value(self, *labels: str) -> float:
        return self._values.get(labels, 0.0)

    def samples(self) -> Iterator[tuple[str, Mapping[str, str], float]]:
        if self._ask is not None:
            yield self.name, {}, self._ask()
            return
        for values, value in self._values.items():
            yield self.name, self._named(values), value


class Gauge(Metric):
    """A number that goes both ways; or one that is asked for when it is shown."""

    kind = "gauge"

    def __init__(self, name: str, help_text: str, labels: Sequence[str] = ()) -> None:
        super().__init__(name, help_text, labels)
        self._values: dict[_Labels, float] = {}
        self._ask: Callable[[], float] | None = None

    def set(self, value: float, *labels: str) -> None:
        self._values[self._admit(labels, self._values)] = value

    def ask(self, function: Callable[[], float]) -> None:
        """Take the value from `function` each time; for a gauge without labels."""
        self._ask = function

    def samples(self) -> Iterator[tuple[str, Mapping[str, str], float]]:
        if self._ask is not None:
            yield self.name, {}, self._ask()
        for values, value in self._values.items():
            yield self.name, self._named(values), value


class Histogram(Metric):
    """How often values fell under each bound."""

    kind = "histogram"

    def __init__(
        self,
        name: str,
        help_text: str,
        labels: Sequence[str] = (),
        buckets: Sequence[float] = SECONDS_BUCKETS,
    ) -> None:
        super().__init__(name, help_text, labels)
        self._bounds = tuple(buckets)
        self._counts: dict[_Labels, list[int]] = {}
        self._sums: dict[_Labels, float] = {}

    def observe(self, value: float, *labels: str) -> None:
        key = self._admit(labels, self._counts)
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = [0] * (len(self._bounds) + 1)
            self._sums[key] = 0.0
        counts[bisect_left(self._bounds, value)] += 1
        self._sums[key] += value

    def samples(self) -> Iterator[tuple[str, Mapping[str, str], float]]:
        for values, counts in self._counts.items():
            named = self._named(values)
            total = 0
            for bound, count in zip(self._bounds, counts, strict=False):
                total += count
                yield f"{self.name}_bucket", {**named, "le": f"{bound:g}"}, total
            total += counts[-1]
            yield f"{self.name}_bucket", {**named, "le": "+Inf"}, total
            yield f"{self.name}_sum", named, self._sums[values]
            yield f"{self.name}_count", named, total


M = TypeVar("M", bound=Metric)


class Metrics:
    """All metrics of one runtime. Asking for a name again gives the metric that is there."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}

    def counter(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Counter:
        return self._add(Counter(name, help_text, labels), Counter)

    def gauge(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Gauge:
        return self._add(Gauge(name, help_text, labels), Gauge)

    def histogram(
        self,
        name: str,
        help_text: str,
        labels: Sequence[str] = (),
        buckets: Sequence[float] = SECONDS_BUCKETS,
    ) -> Histogram:
        return self._add(Histogram(name, help_text, labels, buckets), Histogram)

    def text(self) -> str:
        """The exposition format of Prometheus, version 0.0.4."""
        lines: list[str] = []
        for name in sorted(self._metrics):
            metric = self._metrics[name]
            lines += [f"# HELP {name} {_escape(metric.help_text)}", f"# TYPE {name} {metric.kind}"]
            lines += [
                f"{sample}{_label_text(labels)} {_number(value)}"
                for sample, labels, value in metric.samples()
            ]
        return "\n".join(lines) + "\n"

    def _add(self, metric: M, kind: type[M]) -> M:
        known = self._metrics.setdefault(metric.name, metric)
        if not isinstance(known, kind) or known.labels != metric.labels:
            raise ValueError(f"{metric.name} is there already, as {known.kind} of {known.labels}")
        return known


def _label_text(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    inner = ",".join(f'{k}="{_escape(v)}"' for k, v in labels.items())
    return "{" + inner + "}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)

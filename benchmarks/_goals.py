"""The goals: what each figure has to reach, and how a table shows it beside what was measured.

One process, a machine with two cores, the store on the same machine with its append-only file
(everysec), history and job runs on.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

Figures = Mapping[str, Mapping[str, float]]
"""Scenario to metric to figure."""


class Goal(msgspec.Struct, frozen=True):
    """`beside`: another metric of the scenario; the goal is `bound` times that figure."""

    scenario: str
    metric: str
    bound: float
    least: bool = False
    beside: str | None = None

    def wanted(self, figures: Mapping[str, float]) -> float | None:
        if self.beside is None:
            return self.bound
        floor = figures.get(self.beside)
        return None if floor is None else self.bound * floor

    def said(self) -> str:
        sign = ">=" if self.least else "<="
        return f"{sign} {self.bound:,g}" + (f" x {self.beside}" if self.beside else "")

    def met(self, figures: Mapping[str, float]) -> bool | None:
        """None when it was not measured."""
        found, wanted = figures.get(self.metric), self.wanted(figures)
        if found is None or wanted is None:
            return None
        return found >= wanted if self.least else found <= wanted


GOALS = (
    Goal("core_transition", "us_10_steps", 25),
    Goal("actor_mailbox", "bytes_per_actor", 800),
    Goal("actor_mailbox", "tell_us", 4),
    Goal("actor_mailbox", "ask_us", 25),
    Goal("chain_40", "median_ms", 2.3, beside="floor_ms"),
    Goal("throughput_3", "runs_per_s", 0.2, least=True, beside="floor_runs_per_s"),
    Goal("fan_out", "cost_ratio", 1.3),
    Goal("fan_out_1000", "median_ms", 400),
    Goal("idle_approvals", "bytes_per_run", 2_500),
    Goal("idle_approvals", "release_s", 30),
    Goal("recovery", "runs_per_s", 12_000, least=True),
    Goal("http_api", "get_ratio", 1.5),
    Goal("http_api", "list_ratio", 3),
    Goal("http_api", "trigger_p99_ratio", 3),
    Goal("step_cost", "ratio_5000_50", 1.5),
    Goal("http_attempts", "ratio", 0.5, least=True),
    Goal("soak", "grows", 0),
)

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "core_transition": ("us_10_steps",),
    "actor_mailbox": ("bytes_per_actor", "tell_us", "ask_us", "fair_ms_p99"),
    "chain_40": ("median_ms", "async_median_ms", "floor_ms"),
    "throughput_3": ("runs_per_s", "async_runs_per_s", "rest_runs_per_s", "floor_runs_per_s"),
    "fan_out": ("cost_ratio",),
    "fan_out_1000": ("median_ms",),
    "idle_approvals": ("bytes_per_run", "store_bytes_per_run", "release_s"),
    "recovery": ("runs_per_s",),
    "http_api": (
        *("get_ratio", "list_ratio", "trigger_p99_ratio", "trigger_per_s"),
        *("get_p99_ms", "list_p99_ms", "command_p99_ms", "trigger_p99_ms"),
    ),
    "step_cost": ("ratio_5000_50",),
    "active_runs": ("ratio",),
    "http_attempts": ("ratio",),
    "wfinstances": ("graphs",),
    "soak": ("grows", "bytes_per_run", "latency_ratio"),
}
"""What every result file of all scenarios has, at any size."""


def missing(figures: Figures) -> list[str]:
    """Required metrics that are not there, as `scenario.metric`."""
    return [
        f"{scenario}.{metric}"
        for scenario, metrics in REQUIRED.items()
        for metric in metrics
        if metric not in figures.get(scenario, {})
    ]


def table(figures: Figures, sizes: Mapping[str, str]) -> str:
    """One line a goal of what was measured: goal, figure, whether it is met."""
    rows = [("scenario", "metric", "goal", "figure", "met")]
    for goal in GOALS:
        found = figures.get(goal.scenario, {})
        met = goal.met(found)
        if met is None:
            continue
        verdict = "yes" if met else "NO"
        if sizes.get(goal.scenario) != "full":
            verdict += " (smoke size: says nothing)"
        wanted = goal.said()
        if goal.beside is not None:
            wanted += f" = {_short(goal.wanted(found) or 0)}"
        rows.append((goal.scenario, goal.metric, wanted, _short(found[goal.metric]), verdict))
    widths = [max(len(row[n]) for row in rows) for n in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]])
        for row in rows
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"

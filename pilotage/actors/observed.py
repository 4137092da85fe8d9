"""What `/metrics` shows of the parts of a runtime: asked for when it is shown, not kept twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pilotage.actors.executors.dispatch import Executors
from pilotage.actors.kernel import LoopDispatcher, Timers
from pilotage.actors.metrics import Metrics
from pilotage.actors.services import TimerKey
from pilotage.actors.store_room import StoreRoom
from pilotage.actors.supervisor import Supervisor
from pilotage.actors.writer import Writer

LATE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 10.0)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Parts(Protocol):
    """What is asked: the parts of a runtime."""

    supervisor: Supervisor
    executors: Executors
    timers: Timers[TimerKey]
    dispatcher: LoopDispatcher
    writer: Writer
    room: StoreRoom


def observe(metrics: Metrics, parts: Parts) -> None:
    """Once, when the parts are there."""
    supervisor, executors, writer = parts.supervisor, parts.executors, parts.writer
    timers, room, stats = parts.timers, parts.room, parts.dispatcher.stats
    gauges: dict[str, tuple[str, Callable[[], float]]] = {
        "runs_in_memory": ("Runs whose state is in memory.", lambda: len(supervisor)),
        "runs_passivated": (
            "Active runs that wait for long and are in the store only.",
            lambda: len(supervisor.idle.away),
        ),
        "runs_quarantined": (
            "Runs that take no commands because their actor failed too often.",
            lambda: len(supervisor.quarantined),
        ),
        "attempts_in_progress": ("Attempts in the hands of executors.", lambda: executors.active),
        "attempts_waiting": (
            "Attempts beyond the bound of those in progress.",
            lambda: executors.waiting,
        ),
        "abandoned_threads": (
            "Worker threads that still run an attempt that was stopped.",
            lambda: executors.abandoned_threads,
        ),
        "timers_pending": ("Timers that are armed.", lambda: len(timers)),
        "mailbox_ready_actors": ("Actors with mail that wait for a turn.", lambda: stats().ready),
        "mailbox_remote_messages": (
            "Messages of other threads that wait for the actors' loop.",
            lambda: stats().remote,
        ),
        "store_used_ratio": ("Share of the store's memory in use.", lambda: room.used),
        "store_full": ("1 while no new run is taken on for want of room.", lambda: room.full),
        "store_held_runs": (
            "Runs whose writes the store has no room for.",
            lambda: writer.held,
        ),
        "store_healthy": ("1 while the store takes what is written.", lambda: writer.healthy),
    }
    counters: dict[str, tuple[str, Callable[[], float]]] = {
        "mailbox_refused_total": ("Messages refused by a full mailbox.", lambda: stats().refused),
        "mailbox_dead_letters_total": (
            "Messages whose actor ended before it took them.",
            lambda: stats().dead_letters,
        ),
        "actor_crashes_total": ("Actors that ended with an error.", lambda: stats().crashes),
        "actor_slow_turns_total": (
            "Turns that held the actors' loop for more than 50 ms.",
            lambda: stats().slow_turns,
        ),
        "timer_failures_total": ("Timers whose callback raised.", lambda: timers.failed),
        "clock_jumps_total": ("Times the wall clock was set.", lambda: timers.jumps),
        "writer_batches_total": ("Round trips of the writer.", lambda: writer.batches),
        "writer_writes_total": ("Runs written, in all batches.", lambda: writer.writes),
    }
    for name, (about, ask) in gauges.items():
        metrics.gauge(f"pilotage_{name}", about).ask(ask)
    for name, (about, ask) in counters.items():
        metrics.counter(f"pilotage_{name}", about).ask(ask)
    _distributions(metrics, timers, writer)


def _distributions(metrics: Metrics, timers: Timers[TimerKey], writer: Writer) -> None:
    late = metrics.histogram(
        "pilotage_timer_lateness_seconds",
        "How long after their due time timers fired.",
        buckets=LATE_BUCKETS,
    )
    timers.on_late = lambda late_ms: late.observe(late_ms / 1000)
    size = metrics.histogram(
        "pilotage_writer_batch_runs", "Runs in one round trip.", buckets=BATCH_BUCKETS
    )
    writer.on_batch = size.observe

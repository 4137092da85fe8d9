"""actor_mailbox: what an idle actor weighs, and what a message to one of many costs.

bytes_per_actor   Python memory of an idle actor with its ref, URN and place in a dict (tracemalloc,
                  so that it does not depend on what the process freed before)
start_us          processor time of making and launching one
tell_us           one message to a random actor, from tell to handled, sent in bursts on the loop:
                  processor time (nothing is waited for, so on an idle machine the time it takes)
tell_one_us       the same with all messages to one actor
ask_us            one ask and its answer, awaited one after the other on the loop: processor time
ask_thread_us     one blocking ask from another thread, from asked to answered
backlog_ms        one actor with as many messages as there are actors: until all are handled
fair_ms_p99       while it has that backlog 1,000 others get one ask each: time to their answers
fair_ms_max       the last of these

Goals at full size (100,000 actors): 800 bytes, tell 4 us, ask 25 us.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import time
import tracemalloc
from typing import Any, Final

from pilotage.actors.kernel import LoopActor, LoopDispatcher, LoopRef

NAME: Final = "actor_mailbox"
ACTORS: Final = {"smoke": 5_000, "full": 100_000}
MESSAGES: Final = {"smoke": 20_000, "full": 300_000}
ASKS: Final = {"smoke": 2_000, "full": 20_000}
BURST: Final = 5_000
"""Messages sent before the loop gets its turn: below the capacity of one mailbox."""
SEED: Final = 17

ASKERS: Final = 1_000
"""Actors that are asked while one has a backlog."""

Refs = dict[str, LoopRef["Counter"]]


class Counter(LoopActor):
    """The least an actor can do: count and answer."""

    def __init__(self, dispatcher: LoopDispatcher, urn: str, total: list[int]) -> None:
        super().__init__(dispatcher, urn)
        self._total = total

    def on_receive(self, message: Any) -> int:  # noqa: ARG002  Pykka's signature
        self._total[0] += 1
        return self._total[0]


class Hog(Counter):
    mailbox_capacity = 1_000_000


def spawn_all(dispatcher: LoopDispatcher, count: int, total: list[int]) -> Refs:
    refs: Refs = {}
    for number in range(count):
        urn = f"run-{number:012d}"
        refs[urn] = dispatcher.spawn(Counter, urn, total)
    return refs


async def weigh(dispatcher: LoopDispatcher, count: int) -> float:
    """Bytes of one idle actor. The actors are dropped again."""
    total = [0]
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    refs = spawn_all(dispatcher, count, total)
    await asyncio.sleep(0)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) / len(refs)


async def time_tells(targets: list[LoopRef[Counter]], total: list[int]) -> float:
    """Processor seconds for one message each to `targets`, in bursts, until all are handled."""
    wanted = total[0] + len(targets)
    start = time.process_time()
    for first in range(0, len(targets), BURST):
        sent = total[0] + len(targets[first : first + BURST])
        for ref in targets[first : first + BURST]:
            ref.tell(None)
        while total[0] < sent:  # noqa: ASYNC110  an event would be part of what is measured
            await asyncio.sleep(0)
    assert total[0] == wanted
    return time.process_time() - start


async def time_asks(targets: list[LoopRef[Counter]]) -> float:
    start = time.process_time()
    for ref in targets:
        await ref.ask(None, block=False)
    return time.process_time() - start


def time_blocking_asks(targets: list[LoopRef[Counter]]) -> float:
    start = time.perf_counter()
    for ref in targets:
        ref.ask(None)
    return time.perf_counter() - start


async def fairness(
    dispatcher: LoopDispatcher, others: list[LoopRef[Counter]], backlog: int
) -> tuple[float, list[float]]:
    """(milliseconds until the backlog of one actor is handled, milliseconds until each of the
    others, asked behind it, has answered; sorted).
    """
    hog = dispatcher.spawn(Hog, "hog", handled := [0])
    took: list[float] = []
    start = time.perf_counter()
    for _ in range(backlog):
        hog.tell(None)
    sent = time.perf_counter()
    answers = [ref.ask(None, block=False) for ref in others]
    for answer in answers:
        answer.add_done_callback(lambda: took.append((time.perf_counter() - sent) * 1e3))
    while handled[0] < backlog or len(took) < len(others):  # noqa: ASYNC110
        await asyncio.sleep(0)
    return (time.perf_counter() - start) * 1e3, sorted(took)


async def measure(size: str) -> dict[str, float]:
    choose = random.Random(SEED)
    dispatcher = LoopDispatcher()
    count, messages, asks = ACTORS[size], MESSAGES[size], ASKS[size]
    bytes_per_actor = await weigh(dispatcher, count)

    total = [0]
    gc.collect()
    start = time.process_time()
    refs = list(spawn_all(dispatcher, count, total).values())
    start_secs = time.process_time() - start
    gc.collect()

    spread = await time_tells(choose.choices(refs, k=messages), total)
    one = await time_tells([refs[0]] * messages, total)
    ask_targets = choose.choices(refs, k=asks)
    asked = await time_asks(ask_targets)
    asked_on_thread = await asyncio.to_thread(time_blocking_asks, ask_targets)
    backlog_ms, fair_ms = await fairness(dispatcher, choose.sample(refs, ASKERS), count)
    await dispatcher.close()
    return {
        "bytes_per_actor": round(bytes_per_actor, 1),
        "start_us": round(start_secs / count * 1e6, 3),
        "tell_us": round(spread / messages * 1e6, 3),
        "tell_one_us": round(one / messages * 1e6, 3),
        "ask_us": round(asked / asks * 1e6, 3),
        "ask_thread_us": round(asked_on_thread / asks * 1e6, 3),
        "backlog_ms": round(backlog_ms, 3),
        "fair_ms_p99": round(fair_ms[len(fair_ms) * 99 // 100], 3),
        "fair_ms_max": round(fair_ms[-1], 3),
    }


def run(size: str) -> dict[str, float]:
    """Measure at `size`, "smoke" or "full"."""
    return asyncio.run(measure(size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="few actors, some seconds at most")
    size = "smoke" if parser.parse_args().smoke else "full"
    print(json.dumps({"benchmark": "actor_mailbox", "size": size, **run(size)}))


if __name__ == "__main__":
    main()

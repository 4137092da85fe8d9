"""Approvals, events, sleeps: the parked steps (section 7)."""

from __future__ import annotations

import time

import pytest

from tests.blackbox.api import Api, Json, approval, event, job, shown, sleep
from tests.support.waiting import wait_until_sync


def test_an_approval_has_no_hidden_limit(api: Api) -> None:
    run_id = api.start(approval("a"))
    line = api.explain(run_id)["a"]
    assert line["waiting_for"] == "approval"
    assert "until" not in line


def test_an_approval_times_out(api: Api) -> None:
    run_id = api.start(approval("a", approval_timeout_secs=0.3))
    assert "until" in api.explain(run_id)["a"]
    api.until(run_id, "failed")
    assert api.step(run_id, "a")["error"] == "approval timed out"


def test_an_approval_times_out_while_paused(api: Api) -> None:
    run_id = api.start(approval("a", approval_timeout_secs=0.3))
    api.act(run_id, "pause")
    api.until(run_id, "failed")


def test_a_replayed_approval_gets_its_full_time_again(api: Api) -> None:
    run_id = api.start(approval("a", approval_timeout_secs=0.3))
    begun = time.monotonic()
    wait_until_sync(lambda: time.monotonic() - begun > 0.2, "most of the time")
    api.on(run_id, "a", "replay-subtree", expect=200)
    replayed = time.monotonic()
    api.until(run_id, "failed")
    assert time.monotonic() - replayed >= 0.29


def test_an_event_completes_every_parked_step_of_the_project(api: Api) -> None:
    workflow = api.workflow(event("e", "order-{{ payload.id }}"), event("f", "order-7"))
    one, two = api.trigger(workflow, {"id": 7}), api.trigger(workflow, {"id": 8})
    answer = api.send("order-7", {"paid": True})
    assert answer == {"event_key": "order-7", "delivered": 3, "buffered": False}
    api.until(one, "completed")
    assert api.step(one, "e")["output"] == {"paid": True}
    assert api.step(one, "f")["output"] == {"paid": True}
    assert api.shown(two) == {"e": "waiting/event", "f": "completed"}


def test_event_keys_can_be_reused(api: Api) -> None:
    run_id = api.start(event("e", "again"), event("f", "again", "e"), event("g", "again", "f"))
    for n, ref in enumerate("efg"):
        api.until_step(run_id, ref, "waiting/event")
        assert api.send("again", n)["delivered"] == 1
        assert api.step(run_id, ref)["output"] == n
    api.until(run_id, "completed")
    other = api.start(event("e", "again"))
    assert api.send("again", 9)["delivered"] == 1
    api.until(other, "completed")


def test_an_event_of_another_project_is_not_ours(api: Api) -> None:
    run_id = api.start(event("e", "shared"))
    other = Api(api.server)
    assert other.send("shared", 1)["delivered"] == 0
    assert api.shown(run_id) == {"e": "waiting/event"}
    other.close()


def test_an_event_without_a_buffer_is_gone(api: Api) -> None:
    answer = api.send("early", 1)
    assert (answer["delivered"], answer["buffered"]) == (0, False)
    assert "expires_at" not in answer
    run_id = api.start(event("e", "early"))
    assert api.shown(run_id) == {"e": "waiting/event"}


def test_a_buffered_event_goes_to_the_first_step_that_parks_once(api: Api) -> None:
    answer = api.send("early", {"v": 1}, buffer_secs=60)
    assert (answer["delivered"], answer["buffered"]) == (0, True)
    assert answer["expires_at"]
    first = api.start(event("e", "early"))
    api.until(first, "completed")
    assert api.step(first, "e")["output"] == {"v": 1}
    assert api.step(first, "e")["attempt"] == 1
    second = api.start(event("e", "early"))
    assert api.shown(second) == {"e": "waiting/event"}


def test_two_buffered_events_serve_two_steps_in_order(api: Api) -> None:
    api.send("two", "first", buffer_secs=60)
    api.send("two", "second", buffer_secs=60)
    run_id = api.start(event("e", "two"), event("f", "two", "e"))
    api.until(run_id, "completed")
    assert [api.step(run_id, ref)["output"] for ref in "ef"] == ["first", "second"]


def test_a_delivered_event_is_not_buffered(api: Api) -> None:
    run_id = api.start(event("e", "both"))
    answer = api.send("both", 1, buffer_secs=60)
    assert (answer["delivered"], answer["buffered"]) == (1, False)
    api.until(run_id, "completed")
    assert api.shown(api.start(event("e", "both"))) == {"e": "waiting/event"}


def test_a_buffered_event_expires(api: Api) -> None:
    api.send("short", 1, buffer_secs=1)
    begun = time.monotonic()
    wait_until_sync(lambda: time.monotonic() - begun > 2.5, "the buffer's time")
    assert api.shown(api.start(event("e", "short"))) == {"e": "waiting/event"}


def test_a_buffered_event_waits_for_a_step_that_parks_later(api: Api) -> None:
    run_id = api.start(approval("a"), event("e", "later", "a"))
    assert api.send("later", "kept", buffer_secs=60)["buffered"] is True
    api.on(run_id, "a", "approve")
    api.until(run_id, "completed")
    assert api.step(run_id, "e")["output"] == "kept"


@pytest.mark.parametrize("secs", [-1, 86_401, "long"])
def test_a_buffer_out_of_bounds_is_refused(api: Api, secs: object) -> None:
    body = {"project_id": api.project, "buffer_secs": secs}
    answer = api.post("/v1/events/k/send", body, 422)
    assert any("buffer_secs" in line for line in answer["error"]["details"])


def test_an_event_without_a_payload_gives_no_output(api: Api) -> None:
    run_id = api.start(event("e", "bare"))
    assert api.send("bare")["delivered"] == 1
    api.until(run_id, "completed")
    assert "output" not in api.step(run_id, "e")


def test_an_event_step_times_out(api: Api) -> None:
    run_id = api.start(event("e", "slow", event_timeout_secs=0.3))
    assert "timed out" in api.until(run_id, "failed")["error"]


def test_the_default_timeout_of_an_event_step_is_an_hour(api: Api) -> None:
    run_id = api.start(event("e", "slow"))
    line = api.explain(run_id)["e"]
    assert line["waiting_for"] == "event"
    since = api.step(run_id, "e")["started_at"]
    assert line["until"][11:13] != since[11:13]
    assert line["until"][14:19] == since[14:19]


def test_an_event_key_with_slashes_and_spaces(api: Api) -> None:
    run_id = api.start(event("e", "Grüße {{ payload.id }}"), payload={"id": "a b"})
    assert api.send("Gr%C3%BC%C3%9Fe%20a%20b", 1)["delivered"] == 1
    api.until(run_id, "completed")


def test_a_rendered_key_over_512_characters_fails_the_step(api: Api) -> None:
    run_id = api.start(event("e", "{{ payload.k }}"), payload={"k": "x" * 513})
    api.until(run_id, "failed")
    assert "512" in api.step(run_id, "e")["error"]
    fine = api.start(event("e", "{{ payload.k }}"), payload={"k": "x" * 512})
    assert api.send("x" * 512, 1)["delivered"] == 1
    api.until(fine, "completed")


def test_an_empty_rendered_key_fails_the_step(api: Api) -> None:
    run_id = api.start(event("e", "{{ payload.k }}"), payload={"k": ""})
    api.until(run_id, "failed")


def test_a_step_may_emit_its_output_as_an_event(api: Api) -> None:
    waiting = api.start(event("e", "made-5"))
    run_id = api.start(job("a", "echo", event_emit_key="made-{{ payload.n }}"), payload={"n": 5})
    api.until(run_id, "completed")
    api.until(waiting, "completed")
    assert api.step(waiting, "e")["output"] == {"n": 5, "parent_outputs": {}}


def test_a_run_may_wait_for_its_own_event(api: Api) -> None:
    run_id = api.start(event("e", "self"), job("a", "echo", event_emit_key="self"))
    api.until(run_id, "completed")


def test_a_sleep_takes_its_time_and_at_most_fifty_milliseconds_more(api: Api) -> None:
    best = 1.0
    for _ in range(5):
        run_id = api.start(sleep("s", 0.3))
        run = api.until(run_id, "completed")
        took = stamp(run["finished_at"]) - stamp(run["started_at"])
        assert took >= 0.299
        best = min(best, took)
    assert best < 0.35


def stamp(text: str) -> float:
    """The seconds within the hour of a time."""
    return int(text[14:16]) * 60 + float(text[17:-1])


def test_a_thousand_sleeps_end_together(api: Api) -> None:
    run_id = api.start(*(sleep(f"s{n}", 0.5) for n in range(1000)))
    api.until(run_id, "completed", within_secs=20)


@pytest.mark.parametrize("secs", [0, -1, 30 * 86_400 + 1, "1", None])
def test_a_sleep_out_of_bounds_is_refused(api: Api, secs: object) -> None:
    step = {"step_ref": "s", "step_type": "sleep", "sleep_duration_secs": secs}
    body = {"project_id": api.project, "name": "w", "steps": [step]}
    answer = api.post("/v1/workflows", body, 422)
    assert any("sleep_duration_secs" in line for line in answer["error"]["details"])


def test_a_sleep_of_thirty_days_parks(api: Api) -> None:
    run_id = api.start(sleep("s", 30 * 86_400))
    assert api.shown(run_id) == {"s": "waiting/timer"}


def test_a_parked_step_can_be_forced(api: Api) -> None:
    run_id = api.start(event("e", "k-f"), sleep("s", 600))
    api.on(run_id, "e", "force-complete", {"result": 1})
    api.on(run_id, "s", "skip")
    api.until(run_id, "completed")
    assert api.send("k-f", 1)["delivered"] == 0


def test_an_approval_waits_behind_its_condition_and_dependencies(api: Api) -> None:
    condition: Json = {"type": "exists", "operand": "{{ payload.big }}"}
    run_id = api.start(approval("a", condition=condition), payload={})
    api.until(run_id, "completed")
    assert shown(api.step(run_id, "a")) == "skipped"


def test_a_trigger_with_a_delay_is_pending_until_it_is_due(api: Api) -> None:
    workflow = api.workflow(approval("a"))
    run_id = api.trigger(workflow, delay_secs=0.6)
    run = api.run(run_id)
    assert run["status"] == "pending"
    assert "started_at" not in run
    assert api.step(run_id, "a")["status"] == "pending"
    due = api.until(run_id, "running")
    assert stamp(due["started_at"]) - stamp(due["created_at"]) >= 0.59


def test_a_delayed_run_can_be_canceled_and_takes_no_slot_before_it_is_due(api: Api) -> None:
    workflow = api.workflow(approval("a"), max_concurrent_runs=1)
    delayed = api.trigger(workflow, delay_secs=600)
    now = api.trigger(workflow)
    assert api.run(now)["status"] == "running"
    api.cancel(delayed)
    assert api.run(delayed)["status"] == "canceled"


def test_a_delay_of_nothing_starts_at_once(api: Api) -> None:
    assert api.run(api.trigger(api.workflow(approval("a")), delay_secs=0))["status"] == "running"


def test_a_due_run_queues_when_the_slots_are_taken(api: Api) -> None:
    workflow = api.workflow(approval("a"), max_concurrent_runs=1)
    delayed = api.trigger(workflow, delay_secs=0.3)
    now = api.trigger(workflow)
    api.until_step(delayed, "a", "pending/run_queue")
    begun = time.monotonic()
    wait_until_sync(lambda: time.monotonic() - begun > 0.5, "the delay")
    assert api.run(delayed)["status"] == "pending"
    api.cancel(now)
    api.until(delayed, "running")

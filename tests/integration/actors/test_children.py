"""Sub-workflows end to end: down go cancel, pause, resume and reopen; up goes the end."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from pilotage.actors.catalog_model import Workflow
from pilotage.actors.errors import ConflictError, UnavailableError
from pilotage.actors.outside import Outside
from pilotage.actors.principal import ADMIN
from pilotage.persistence.port import RunQuery
from pilotage.runtime.effects import StartChild
from tests.integration.actors.rig import PROJECT, Rig, gate, noop
from tests.support.waiting import wait_until


def sub(child: Workflow | str, *depends_on: str, ref: str = "sub", **rest: Any) -> dict[str, Any]:
    slug = child if isinstance(child, str) else child.slug
    return {
        "step_ref": ref,
        "step_type": "sub_workflow",
        "sub_workflow_id": slug,
        "depends_on": list(depends_on),
        **rest,
    }


async def child_of(world: Rig, run: str, ref: str = "sub") -> str:
    child = (await world.step(run, ref)).child_run_id
    assert child is not None

    async def there() -> bool:
        return (await world.store.load_runs([child]))[0] is not None

    await wait_until(there, "the child exists")
    return child


async def runs_of(world: Rig, workflow: Workflow) -> list[str]:
    query = RunQuery(project_id=PROJECT, limit=100, workflow_id=workflow.id)
    views, _ = await world.gateway.list_runs(query)
    return [view.id for view in views]


async def test_the_outputs_of_the_child_are_the_output_of_the_step(world: Rig) -> None:
    child = await world.workflow("c", [noop("x", payload={"value": "{{ payload.n }}"})])
    flow = await world.workflow("p", [sub(child), noop("after", "sub")])
    run = await world.trigger(flow, n=7)
    await world.until(run, "completed")
    step = await world.step(run, "sub")
    assert msgspec.json.decode(step.output or b"null") == {"x": 7}
    made = await world.state(await child_of(world, run))
    assert made.head.parent_run_id == run
    assert made.head.triggered_by == "sub_workflow"


async def test_cancel_pause_and_resume_reach_grandchildren(world: Rig) -> None:
    leaf = await world.workflow("leaf", [gate("x"), gate("y", "x")])
    middle = await world.workflow("middle", [sub(leaf)])
    top = await world.workflow("top", [sub(middle)])
    run = await world.trigger(top)
    await world.began_all("x")
    below = await child_of(world, run)
    leaf_run = await child_of(world, below)
    await world.gateway.pause(run, ADMIN)
    await world.until(below, "paused")
    await world.until(leaf_run, "paused")
    world.let("x")
    await world.until_step(leaf_run, "y", "pending")
    await world.gateway.resume(run, ADMIN)
    await world.began_all("y")
    await world.gateway.cancel(run, ADMIN, None)
    await world.until(leaf_run, "canceled")
    await world.until(below, "canceled")


async def test_a_failed_child_fails_the_step_and_a_retry_goes_on_with_the_same_child(
    world: Rig,
) -> None:
    fail = {"step_ref": "f", "job_id": "fail", "depends_on": ["a"], "payload": {"key": "f"}}
    child = await world.workflow("c", [gate("a"), fail])
    flow = await world.workflow("p", [sub(child), noop("after", "sub")])
    world.broken.add("f")
    world.let("a")
    run = await world.trigger(flow)
    failed = await world.until(run, "failed")
    assert "f is broken" in (failed.vitals.error or "")
    first = await child_of(world, run)
    world.broken.clear()
    await world.gateway.retry_step(run, "sub", ADMIN)
    await world.until(run, "completed")
    step = await world.step(run, "sub")
    assert (step.child_run_id, step.attempt) == (first, 2)
    assert world.began.count("a") == 1
    assert await runs_of(world, child) == [first]


async def test_a_replayed_subtree_makes_a_new_child(world: Rig) -> None:
    child = await world.workflow("c", [noop("x")])
    flow = await world.workflow("p", [sub(child)])
    run = await world.trigger(flow)
    await world.until(run, "completed")
    first = await child_of(world, run)
    assert await world.gateway.replay_subtree(run, "sub", ADMIN) == 1
    await world.until(run, "completed")
    assert await child_of(world, run) != first


async def test_canceling_a_child_fails_the_parents_step(world: Rig) -> None:
    child = await world.workflow("c", [gate("x")])
    flow = await world.workflow("p", [sub(child, retry_max_attempts=5)])
    run = await world.trigger(flow)
    await world.began_all("x")
    await world.gateway.cancel(await child_of(world, run), ADMIN, "enough")
    failed = await world.until(run, "failed")
    assert "enough" in (failed.vitals.error or "")


async def test_a_child_of_the_same_workflow_does_not_wait_for_its_ancestors_slot(
    world: Rig,
) -> None:
    deep: dict[str, Any] = {
        "payload": {"n": 1},
        "condition": {"type": "eq", "left": "{{ payload.n }}", "right": 0},
    }
    flow = await world.workflow("p", [noop("x")], max_concurrent_runs=1)
    flow = await world.patch(flow, steps=[noop("x"), sub(flow, "x", **deep)])
    runs = [await world.trigger(flow, n=0) for _ in range(2)]
    for run in runs:
        await world.until(run, "completed")
        assert await world.status(await child_of(world, run)) == "completed"
    assert world.runtime.admission.run_slot_free(flow.id)


async def test_children_queue_for_their_workflows_slots_and_a_paused_parent_keeps_them_there(
    world: Rig,
) -> None:
    child = await world.workflow("c", [gate("x")], max_concurrent_runs=1)
    flow = await world.workflow("p", [sub(child, payload={"k": "{{ payload.n }}"})])
    runs = [await world.trigger(flow, n=f"{n}.") for n in range(3)]
    await world.began_all("0.x")
    children = [await child_of(world, run) for run in runs]
    assert [await world.status(c) for c in children] == ["running", "pending", "pending"]
    await world.gateway.pause(runs[1], ADMIN)

    async def held() -> bool:
        return (await world.state(children[1])).vitals.held

    await wait_until(held, "the child is held")
    world.let("0.x")
    await world.began_all("2.x")
    assert await world.status(children[1]) == "pending"
    await world.gateway.resume(runs[1], ADMIN)
    assert await world.status(children[1]) == "pending"
    world.let("2.x", "1.x")
    for run in runs:
        await world.until(run, "completed")


async def test_after_a_crash_children_are_neither_doubled_nor_lost(world: Rig) -> None:
    child = await world.workflow("c", [gate("x")], max_concurrent_runs=1)
    flow = await world.workflow("p", [sub(child, payload={"k": "{{ payload.n }}"})])
    runs = [await world.trigger(flow, n=f"{n}.") for n in range(3)]
    await world.began_all("0.x")
    before = [await child_of(world, run) for run in runs]
    for _ in range(3):
        await world.crash_and_start()
        await world.began_all("0.x")
        assert [await world.status(c) for c in before] == ["running", "pending", "pending"]
    world.let("0.x", "1.x", "2.x")
    for run in runs:
        await world.until(run, "completed")
    assert sorted(await runs_of(world, child)) == sorted(before)
    assert world.most["gate"] == 1


async def test_a_child_that_cannot_be_started_fails_its_step(world: Rig) -> None:
    child = await world.workflow("c", [noop("x")])
    flow = await world.workflow("p", [gate("a"), sub(child, "a")])
    run = await world.trigger(flow)
    await world.began_all("a")
    await world.patch(child, enabled=False)
    world.let("a")
    failed = await world.until(run, "failed")
    assert "disabled" in (failed.vitals.error or "")


async def test_messages_that_were_not_delivered_are_delivered_after_a_crash(
    world: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = await world.workflow("c", [gate("x")])
    flow = await world.workflow("p", [sub(child)])
    run = await world.trigger(flow)
    await world.began_all("x")
    below = await child_of(world, run)

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        patched.setattr(Outside, "_deliver", never)
        await world.gateway.cancel(run, ADMIN, None)
        assert await world.status(below) == "running"
        await world.crash()
    await world.start()
    await world.until(below, "canceled")
    await wait_until(lambda: len(world.runtime.supervisor) == 0, "both have left memory")
    stored = (await world.store.load_runs([run]))[0]
    assert stored is not None
    assert stored.outbox == {}


async def test_a_run_of_somebody_else_is_not_taken_for_the_child(world: Rig) -> None:
    """It would never report to this parent, which would wait for ever."""
    flow = await world.workflow("c", [gate("x")])
    parent = await world.state(await world.trigger(flow, k="p."))
    other = await world.trigger(flow, k="o.")

    async def claim() -> None:
        effect = StartChild(
            step=0, attempt=1, child_run_id=other, workflow=flow.slug, payload=b"{}"
        )
        await world.runtime.creation.child(parent, effect)

    with pytest.raises(ConflictError, match="is not a child of this step"):
        await claim()
    world.let("o.x", "p.x")
    await world.until(other, "completed")
    await wait_until(lambda: len(world.runtime.supervisor) == 0, "they have left memory")
    with pytest.raises(ConflictError, match="is not a child of this step"):
        await claim()


async def test_each_event_that_a_run_emits_has_an_id_of_its_own(
    world: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    send = world.runtime.hub.send

    async def noted(*args: Any, event_id: str, **rest: Any) -> Any:
        sent.append(event_id)
        return await send(*args, event_id=event_id, **rest)

    monkeypatch.setattr(world.runtime.hub, "send", noted)
    steps = [noop("a", event_emit_key="k"), noop("b", event_emit_key="k"), noop("c", "a", "b")]
    run = await world.trigger(await world.workflow("w", steps))
    await world.until(run, "completed")
    await wait_until(lambda: len(sent) == 2, "both were sent")
    assert len(set(sent)) == 2
    assert all(event_id.startswith(f"{run}/") for event_id in sent)


async def test_a_child_that_a_crash_kept_from_being_made_and_that_cannot_be_any_more_fails_its_step(
    world: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its input was made from what has been taken back since."""
    child = await world.workflow("c", [noop("x")])
    needs = sub(child, "a", payload={"v": "{{ steps.a.output }}"}, retry_max_attempts=1)
    flow = await world.workflow("p", [gate("a"), needs])
    monkeypatch.setattr(Outside, "_start_child", not_yet)
    run = await world.trigger(flow, k="0.")
    await world.began_all("0.a")
    world.let("0.a")
    await world.until_step(run, "sub", "running")
    world.gates["0.a"].clear()
    await world.gateway.retry_step(run, "a", ADMIN)
    monkeypatch.undo()
    await world.crash()
    await world.start()
    await world.until_step(run, "sub", "failed")
    error = (await world.step(run, "sub")).error or ""
    assert error.startswith("sub-workflow could not be started: it was not created")
    assert "steps.a.output" in error
    assert await runs_of(world, child) == []


async def not_yet(self: Outside, effect: StartChild) -> None:
    raise UnavailableError("not yet")

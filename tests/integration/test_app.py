"""The Python API: jobs and workflows in code, a runtime in this process, handles to runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypedDict

import msgspec
import pytest

import pilotage
from pilotage import (
    DefinitionError,
    Fail,
    JobContext,
    LocalRuntime,
    Pilotage,
    Retry,
    Workflow,
    approval,
    sleep,
    step,
    sub_workflow,
    wait_for_event,
)
from pilotage.actors.errors import ConflictError, ForbiddenError, NotFoundError
from pilotage.app import AppNotFoundError, load_app
from pilotage.cli.files import load_definition
from pilotage.local import RunNotCompletedError
from pilotage.steps import seconds
from tests.support.waiting import wait_until


class Order(msgspec.Struct):
    order_id: int
    amount: float = 0.0


@dataclass
class Receipt:
    order_id: int
    key: str


class Shipment(TypedDict):
    parcel: str


class Shop:
    """An app, and what its jobs have seen."""

    def __init__(self) -> None:
        self.app = app = Pilotage()
        self.attempts: list[int] = []

        @app.job
        def validate(order: Order) -> Order:
            return order

        @app.job(max_attempts=3, timeout="5s", retry_initial_delay=0)
        async def charge(order: Order, ctx: JobContext) -> Receipt:
            self.attempts.append(ctx.attempt)
            if ctx.attempt == 1:
                raise Retry("busy", after=0)
            if order.order_id < 0:
                raise Fail("no such order")
            return Receipt(order.order_id, f"{ctx.run_id}/{ctx.step_ref}")

        @app.job
        async def ship(given: dict[str, Any]) -> Shipment:
            return Shipment(parcel=f"for {given['parent_outputs']['charge']['order_id']}")

        self.validate, self.charge, self.ship = validate, charge, ship
        self.flow = app.workflow(
            "orders",
            steps=[
                step("validate", job=validate),
                step("charge", job=charge, after="validate"),
                step("ship", job=ship, after=["charge"]),
            ],
        )
        self.waiting = app.workflow(
            "waiting",
            steps=[
                approval("decide", approvers=["ops"], timeout="4h"),
                wait_for_event("paid", "payment/{{ payload.order_id }}", after="decide"),
                sleep("breathe", "10ms", after="paid"),
            ],
        )
        self.outer = app.workflow("outer", steps=[sub_workflow("inner", self.flow)])


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
async def runtime(shop: Shop) -> AsyncIterator[LocalRuntime]:
    async with shop.app.running(temporary=True) as runtime:
        yield runtime


async def waits_for(run: pilotage.Run, ref: str, what: str) -> None:
    async def it_does() -> bool:
        return any(s.step_ref == ref and s.waiting_for == what for s in await run.steps())

    await wait_until(it_does, f"{ref} waits for {what}")


# --- runs ----------------------------------------------------------------------------------------


async def test_a_run_from_trigger_to_result(shop: Shop, runtime: LocalRuntime) -> None:
    run = await runtime.trigger(shop.flow, payload={"order_id": 42}, tags={"of": "test"})
    result = await run.wait(timeout=20)
    assert result.completed
    assert result.outputs["ship"] == {"parcel": "for 42"}
    assert result.outputs["charge"]["key"] == f"{run.id}/charge"
    assert shop.attempts == [1, 2]
    view = await run.view()
    assert (view.triggered_by, view.created_by, view.tags) == ("manual", "python", {"of": "test"})
    assert await runtime.run(run.id).outputs() == result.outputs


async def test_a_struct_as_payload(shop: Shop, runtime: LocalRuntime) -> None:
    run = await runtime.trigger("orders", Order(order_id=7))
    assert (await run.outputs(timeout=20))["validate"] == {"order_id": 7, "amount": 0.0}


async def test_a_run_that_fails_says_why(shop: Shop, runtime: LocalRuntime) -> None:
    run = await runtime.trigger(shop.flow, {"order_id": -1})
    with pytest.raises(RunNotCompletedError, match="no such order") as failed:
        await run.outputs(timeout=20)
    assert failed.value.result.status == "failed"
    assert set(failed.value.result.outputs) == {"validate"}


async def test_waiting_may_end_early_without_ending_the_run(
    shop: Shop, runtime: LocalRuntime
) -> None:
    run = await runtime.trigger(shop.waiting, {"order_id": 1})
    with pytest.raises(TimeoutError):
        await run.wait(timeout=0.01)
    assert await run.status() == "running"


async def test_waits_are_ended_by_people_and_events(shop: Shop, runtime: LocalRuntime) -> None:
    run = await runtime.trigger(shop.waiting, {"order_id": 8})
    await waits_for(run, "decide", "approval")
    with pytest.raises(ForbiddenError):
        await run.approve("decide")
    await run.approve("decide", "fine", by="ops")
    await waits_for(run, "paid", "event")
    assert await runtime.send_event("payment/8", {"cents": 5}) == 1
    outputs = await run.outputs(timeout=20)
    assert outputs["paid"] == {"cents": 5}
    assert outputs["decide"]["comment"] == "fine"


async def test_an_event_is_kept_for_a_step_that_will_wait(
    shop: Shop, runtime: LocalRuntime
) -> None:
    assert await runtime.send_event("payment/9", keep=60) == 0
    run = await runtime.trigger(shop.waiting, {"order_id": 9})
    await waits_for(run, "decide", "approval")
    await run.approve("decide", by="ops")
    assert (await run.wait(timeout=20)).completed


async def test_sub_workflow_outputs_come_up(shop: Shop, runtime: LocalRuntime) -> None:
    run = await runtime.trigger(shop.outer, {"order_id": 3})
    outputs = await run.outputs(timeout=20)
    assert outputs["inner"]["ship"] == {"parcel": "for 3"}


async def test_steering(shop: Shop, runtime: LocalRuntime) -> None:
    run = await runtime.trigger(shop.waiting, {"order_id": 4})
    await waits_for(run, "decide", "approval")
    await run.pause()
    assert await run.status() == "paused"
    await run.resume()
    await run.skip("decide", "not needed")
    await run.complete("paid", {"by": "hand"})
    result = await run.wait(timeout=20)
    assert result.outputs == {"paid": {"by": "hand"}}
    assert await run.replay("paid") == 2
    await run.cancel("enough")
    assert (await run.wait(timeout=20)).status == "canceled"
    with pytest.raises(ConflictError):
        await run.pause()
    again = await run.retry()
    assert again.id != run.id
    await waits_for(again, "paid", "event")
    await again.complete("paid")
    assert (await again.wait(timeout=20)).completed


async def test_reject_and_retry_step(shop: Shop, runtime: LocalRuntime) -> None:
    run = await runtime.trigger(shop.waiting, {"order_id": 5})
    await waits_for(run, "decide", "approval")
    await run.reject("decide", "no", by="ops")
    assert (await run.wait(timeout=20)).status == "failed"
    await run.retry_step("decide")
    assert await run.status() == "running"


async def test_what_is_not_there(runtime: LocalRuntime) -> None:
    with pytest.raises(NotFoundError):
        await runtime.trigger("no-such-workflow")
    with pytest.raises(NotFoundError):
        await runtime.run("no-such-run").wait()


async def test_a_delayed_run_starts_later(shop: Shop, runtime: LocalRuntime) -> None:
    run = await runtime.trigger(shop.flow, {"order_id": 1}, delay=3600)
    assert await run.status() == "pending"


# --- over the end of the process -----------------------------------------------------------------


async def test_runs_go_on_at_the_next_start(tmp_path: Path) -> None:
    first, second = Shop(), Shop()
    async with first.app.running(data_dir=tmp_path / "data") as runtime:
        run = await runtime.trigger(first.waiting, {"order_id": 6})
        await waits_for(run, "decide", "approval")
    async with second.app.running(data_dir=tmp_path / "data") as runtime:
        again = runtime.run(run.id)
        assert await again.status() == "running"
        await again.approve("decide", by="ops")
        workflow = await runtime.actors.catalog.workflow("default", "waiting")
        assert workflow.version == 1, "the same definition makes no new version"


async def test_a_changed_workflow_is_the_next_version(tmp_path: Path) -> None:
    for count in (1, 2):
        app = Pilotage()
        app.job(name="echo")(job)
        app.workflow("flow", steps=[step(f"s{i}", job="echo") for i in range(count)])
        async with app.running(data_dir=tmp_path) as runtime:
            workflow = await runtime.actors.catalog.workflow("default", "flow")
            assert workflow.version == count


async def test_temporary_keeps_nothing_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="temporary"):
        async with Pilotage().running(temporary=True, data_dir=tmp_path):
            pass


async def test_an_unknown_job_is_refused_at_the_start() -> None:
    app = Pilotage()
    app.workflow("flow", steps=[step("a", job="not-registered")])
    with pytest.raises(DefinitionError, match="not-registered"):
        async with app.running(temporary=True):
            pass


# --- definitions ---------------------------------------------------------------------------------


def job(given: dict[str, Any]) -> None:
    """A function that nobody has registered."""


def test_everything_wrong_with_a_workflow_is_said_at_once() -> None:
    app = Pilotage()
    with pytest.raises(DefinitionError) as refused:
        app.workflow(
            "flow",
            steps=[
                step("a", job=job),
                step("a", job="x", after="nowhere"),
                sleep("zzz", 0),
            ],
        )
    text = "\n".join(refused.value.problems)
    for word in ("decorate it with @app.job", "nowhere", "steps[1]", "steps[2]"):
        assert word in text
    assert app.workflows == ()


def test_a_slug_is_used_once() -> None:
    app = Pilotage()
    app.workflow("flow", steps=[sleep("s", 1)])
    with pytest.raises(DefinitionError, match="already"):
        app.workflow("flow", steps=[sleep("s", 1)])


ORDERS_YAML = """
name: Orders
slug: orders
timeout_secs: 3600
max_parallel_steps: 2
tags: {team: shop}
steps:
  - step_ref: charge
    step_type: job
    job_id: charge
    timeout_secs_override: 30
    retry_max_attempts: 5
    retry_backoff: fixed
    retry_initial_delay_secs: 0.5
    retry_max_delay_secs: 60
    payload: {cents: "{{ payload.cents }}"}
    output_transform: id
    concurrency_key: card
    on_failure: continue
    event_emit_key: charged
  - step_ref: review
    step_type: approval
    depends_on: [charge]
    approval_approvers: [ops]
    approval_timeout_secs: 14400
    condition: {type: gt, left: "{{ payload.cents }}", right: 1}
  - step_ref: paid
    step_type: wait_for_event
    event_key: paid/{{ run.id }}
    event_timeout_secs: 60
    depends_on: [charge, review]
  - step_ref: window
    step_type: sleep
    sleep_duration_secs: 1.5
    depends_on: [paid]
  - step_ref: audit
    step_type: sub_workflow
    sub_workflow_id: audits
    max_nesting_depth: 2
    depends_on: [window]
"""


def test_python_and_file_mean_the_same(tmp_path: Path) -> None:
    app = Pilotage()
    charge = app.job(name="charge")(job)
    made = app.workflow(
        "orders",
        name="Orders",
        timeout="1h",
        max_parallel_steps=2,
        tags={"team": "shop"},
        steps=[
            step("charge", job=charge, timeout="30s", max_attempts=5, retry_backoff="fixed",
                 retry_initial_delay=0.5, retry_max_delay=timedelta(minutes=1),
                 payload={"cents": "{{ payload.cents }}"}, output_transform="id",
                 concurrency_key="card", on_failure="continue", event_emit_key="charged"),
            approval("review", after="charge", approvers=["ops"], timeout="4h",
                     condition={"type": "gt", "left": "{{ payload.cents }}", "right": 1}),
            wait_for_event("paid", "paid/{{ run.id }}", after=["charge", "review"], timeout=60),
            sleep("window", timedelta(seconds=1.5), after="paid"),
            sub_workflow("audit", "audits", after="window", max_nesting_depth=2),
        ],
    )  # fmt: skip
    file = tmp_path / "orders.yaml"
    file.write_text(ORDERS_YAML)
    assert made.definition == load_definition(file).workflow


@pytest.mark.parametrize(
    ("value", "secs"),
    [(30, 30), (0.5, 0.5), ("250ms", 0.25), ("1h30m", 5400), ("1.5s", 1.5), ("2d", 172_800),
     (timedelta(minutes=2), 120)],
)  # fmt: skip
def test_durations(value: Any, secs: float) -> None:
    assert seconds(value) == secs


@pytest.mark.parametrize("value", ["", "soon", "5", "-1s", "1s " * 2, "s"])
def test_a_text_that_is_no_duration_is_refused(value: str) -> None:
    with pytest.raises(DefinitionError, match="not a duration"):
        seconds(value)


def test_a_job_stays_the_function_it_was(tmp_path: Path) -> None:
    app = Pilotage()

    @app.job
    def double(given: dict[str, int]) -> int:
        return given["n"] * 2

    assert double({"n": 21}) == 42


# --- finding an app, and the names of the package ------------------------------------------------


def test_an_app_is_found_by_name() -> None:
    assert isinstance(load_app("tests.cli.flows:app"), Pilotage)
    assert isinstance(load_app("tests.cli.flows"), Pilotage)


@pytest.mark.parametrize(
    ("target", "word"),
    [("no_such_module:app", "no module|there is no module"), ("tests.cli.flows:x", "it has app"),
     ("no.such.module", "no module"), ("", "no module"), ("tests.cli:app", "no Pilotage")],
)  # fmt: skip
def test_an_app_that_is_not_there(target: str, word: str) -> None:
    with pytest.raises(AppNotFoundError, match=word):
        load_app(target)


def test_the_public_names_are_few_and_all_there() -> None:
    assert len(pilotage.__all__) < 20
    for name in pilotage.__all__:
        assert getattr(pilotage, name) is not None
    assert set(pilotage.__all__) <= set(dir(pilotage))
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        _ = pilotage.nothing_of_ours


def test_a_workflow_is_a_value() -> None:
    assert isinstance(Shop().flow, Workflow)

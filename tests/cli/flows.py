"""The app that the servers of these tests serve: jobs that wait or fail as a test tells them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from pilotage import Fail, JobContext, Pilotage, approval, step, wait_for_event

app = Pilotage()


@app.job
async def echo(given: dict[str, Any]) -> Any:
    return given.get("say", "nothing")


@app.job
async def gated(given: dict[str, Any], ctx: JobContext) -> str:
    """Waits until the file `gate` of the payload is there."""
    gate = Path(given["gate"])
    while not gate.exists():
        await asyncio.sleep(0.005)
    return f"attempt {ctx.attempt}"


@app.job
async def fragile(given: dict[str, Any]) -> str:
    """Fails for good unless the file `mended` of the payload is there."""
    if not Path(given["mended"]).exists():
        raise Fail("it is broken")
    return "mended"


greet = app.workflow(
    "greet",
    description="Says something twice.",
    steps=[step("first", job=echo), step("second", job=echo, after="first")],
)
held = app.workflow(
    "held", steps=[step("gate", job=gated), step("after-gate", job=echo, after="gate")]
)
review = app.workflow(
    "review",
    steps=[
        approval("decide", approvers=["mira", "ops"], timeout="4h"),
        step("after", job=echo, after="decide"),
    ],
)
paid = app.workflow(
    "paid",
    steps=[
        wait_for_event("payment", "payment/{{ payload.order }}"),
        step("say", job=echo, after="payment"),
    ],
)
broken = app.workflow(
    "broken", steps=[step("weak", job=fragile), step("strong", job=echo, after="weak")]
)

"""The app of the servers under chaos: Python jobs that write down what they do.

One line an execution in the file that `CHAOS_LOG` names: monotonic seconds, process, run, step,
attempt. The output is new at each execution, so a step that ran again shows another one.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from pilotage import JobContext, Pilotage

app = Pilotage()


def note(ctx: JobContext) -> dict[str, Any]:
    """Write the line, in one write(2) so that lines of several processes never mix."""
    line = f"{time.monotonic()} {os.getpid()} {ctx.run_id} {ctx.step_ref} {ctx.attempt}\n"
    fd = os.open(os.environ["CHAOS_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)
    return {"did": uuid4().hex, "attempt": ctx.attempt}


@app.job(inline=True)
def mark_inline(given: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    return note(ctx)


@app.job
async def mark_async(given: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    return note(ctx)


@app.job
def mark_thread(given: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    return note(ctx)


@app.job
async def mark_slow(given: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    """Written down at once, done when the file `gate` of the payload is there."""
    did = note(ctx)
    gate = Path(given["gate"])
    while not gate.exists():
        await asyncio.sleep(0.01)
    return did


_openings: dict[Path, asyncio.Task[None]] = {}


@app.job
async def mark_gated(given: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    """As `mark_slow`, for thousands at a time: one look at the gate is for all of them. The output
    has `size` characters more.
    """
    did = note(ctx)
    gate = Path(given["gate"])
    opening = _openings.get(gate)
    if opening is None:
        opening = _openings[gate] = asyncio.create_task(_opened(gate))
    await asyncio.shield(opening)
    return did | {"text": "x" * given["size"]}


async def _opened(gate: Path) -> None:
    while not gate.exists():
        await asyncio.sleep(0.01)


@app.job(process=True)
def mark_process(given: dict[str, Any], ctx: JobContext) -> dict[str, Any]:
    return note(ctx)

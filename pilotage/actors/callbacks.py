"""Reports of remote jobs: the callback API behind run tokens (definitions.md).

A token is bound to one attempt. A report for an attempt that a newer one has replaced is a
`ConflictError`, for a step that is over otherwise a `GoneError`.
"""

from __future__ import annotations

import asyncio

from pilotage.actors.catalog import Catalog
from pilotage.actors.errors import (
    ConflictError,
    GoneError,
    NotFoundError,
    UnauthenticatedError,
)
from pilotage.actors.executors.port import Logged, Progressed
from pilotage.actors.executors.tokens import RunTokens
from pilotage.actors.heartbeats import Heartbeats, in_progress
from pilotage.actors.job_runs import Announced
from pilotage.actors.kernel import Clock
from pilotage.actors.messages import AttemptNote
from pilotage.actors.supervisor import Supervisor
from pilotage.runtime.commands import CALLBACK, AttemptCompleted, AttemptFailed, Command
from pilotage.runtime.ids import Located, locate
from pilotage.runtime.replies import Late
from pilotage.runtime.state import RunState
from pilotage.runtime.transforms import TransformError, compile_transform


class Callbacks:
    """What remote jobs may tell us. All on the actors' loop."""

    def __init__(
        self,
        *,
        supervisor: Supervisor,
        catalog: Catalog,
        tokens: RunTokens,
        clock: Clock,
        heartbeats: Heartbeats,
    ) -> None:
        self._supervisor = supervisor
        self._catalog = catalog
        self._tokens = tokens
        self._clock = clock
        self._heartbeats = heartbeats

    def check(self, job_run_id: str, token: str) -> None:
        """`UnauthenticatedError` for who may not report, before anything else is looked at."""
        self._authenticated(job_run_id, token)

    async def complete(self, job_run_id: str, token: str, output: bytes | None) -> None:
        where, step = self._authenticated(job_run_id, token)
        command: Command
        try:
            output = await self._transformed(where, step, output)
        except TransformError as error:
            command = AttemptFailed(
                step=step,
                attempt=where.attempt,
                error=str(error),
                error_class="output_transform",
                final=True,
                actor=CALLBACK,
            )
        else:
            command = AttemptCompleted(
                step=step, attempt=where.attempt, output=output, actor=CALLBACK
            )
        await self._report(where, step, command)

    async def _transformed(self, where: Located, step: int, output: bytes | None) -> bytes | None:
        """What the step's `output_transform` makes of the result; off the loop, as for answers."""
        state = await self._supervisor.state(where.run_id)
        expression = None if state is None else state.graph.steps[step].output_transform
        if expression is None or output is None:
            return output
        return await asyncio.to_thread(compile_transform(expression).apply_json, output)

    async def fail(self, job_run_id: str, token: str, error: str, *, final: bool) -> None:
        where, step = self._authenticated(job_run_id, token)
        command = AttemptFailed(
            step=step,
            attempt=where.attempt,
            error=error,
            error_class="job_error",
            final=final,
            actor=CALLBACK,
        )
        await self._report(where, step, command)

    async def heartbeat(self, job_run_id: str, token: str) -> None:
        """From the first one on the job must go on sending them, if it has a bound for that."""
        where, step = self._authenticated(job_run_id, token)
        state = await self._running(where, step)
        job = await self._catalog.job_for_attempt(
            state.head.project_id, state.graph.steps[step].job_id or ""
        )
        bound = job.spec.heartbeat_timeout_secs
        if bound is None:
            return
        if not self._heartbeats.expected(where.run_id, step, where.attempt):
            announced = AttemptNote(step=step, attempt=where.attempt, note=Announced(bound))
            await self._supervisor.ask(where.run_id, announced)
        self._heartbeats.expect(where.run_id, step, where.attempt, bound)

    async def progress(
        self, job_run_id: str, token: str, percent: float, message: str | None
    ) -> None:
        await self._note(job_run_id, token, Progressed(percent, message))

    async def log(
        self, job_run_id: str, token: str, level: str, message: str, data: bytes | None
    ) -> None:
        await self._note(job_run_id, token, Logged(level, message, data))

    async def _note(self, job_run_id: str, token: str, note: Progressed | Logged) -> None:
        where, step = self._authenticated(job_run_id, token)
        await self._running(where, step)
        message = AttemptNote(step=step, attempt=where.attempt, note=note)
        await self._supervisor.ask(where.run_id, message)

    def _authenticated(self, job_run_id: str, token: str) -> tuple[Located, int]:
        where = locate(job_run_id)
        if where is not None and where.step is not None:
            tokens = self._tokens
            if tokens.verify(token, job_run_id, self._clock.now_ms()):
                return where, where.step
            # an attempt whose time is not up keeps its token, however far the clock was set
            measured = self._supervisor.run_timers.measures(where.run_id, where.step, where.attempt)
            if measured and tokens.signed(token, job_run_id):
                return where, where.step
        raise UnauthenticatedError("the run token is not valid for this job run")

    async def _report(self, where: Located, step: int, command: Command) -> None:
        try:
            answer = await self._supervisor.command(where.run_id, command)
        except NotFoundError:
            raise GoneError("the run is over and was removed") from None
        self._heartbeats.forget(where.run_id, step, where.attempt)
        if isinstance(answer.result, Late):
            raise _late(answer.state, step, answer.result.superseded)

    async def _running(self, where: Located, step: int) -> RunState:
        state = await self._supervisor.state(where.run_id)
        if state is None:
            raise GoneError("the run is over and was removed")
        if not in_progress(state, step, where.attempt):
            raise _late(state, step, state.step(step).attempt > where.attempt)
        return state


def _late(state: RunState, step: int, superseded: bool) -> ConflictError | GoneError:  # noqa: FBT001
    ref, found = state.graph.steps[step].step_ref, state.step(step)
    if superseded:
        return ConflictError(f'step "{ref}" is at attempt {found.attempt} already')
    return GoneError(f'step "{ref}" is {found.status} and takes no more reports')

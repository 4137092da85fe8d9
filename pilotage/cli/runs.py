"""`pilotage runs`: the operator's verbs, as thin as the API allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from pilotage.cli import answers
from pilotage.cli.answers import Json, Shape
from pilotage.cli.client import segment
from pilotage.cli.drawings import (
    EVENT_COLUMNS,
    EXPLAIN_COLUMNS,
    run_columns,
    show_preview,
    show_run,
)
from pilotage.cli.errors import FAILED, USAGE, CommandError
from pilotage.cli.output import Column, key
from pilotage.cli.session import Session, json_or_none, key_values, operator
from pilotage.runtime.status import RunStatus

RUNS = "/v1/workflow-runs"
SHOW_RUN = {"Prefer": "return=representation"}


def run_path(run_id: str, *rest: str) -> str:
    return "/".join([RUNS, segment(run_id), *rest])


def step_path(run_id: str, step_ref: str, verb: str) -> str:
    return run_path(run_id, "steps", segment(step_ref), verb)


def workflow_names(session: Session) -> dict[str, str]:
    """Workflow id to slug, for people; the newest hundred are enough for a list."""
    query: dict[str, str | None] = {"project_id": session.project}
    return {
        workflow["id"]: workflow["slug"]
        for workflow in session.client.pages("/v1/workflows", answers.Workflow, query, 100)
    }


def find_workflow(session: Session, id_or_slug: str) -> dict[str, Json]:
    path = f"/v1/workflows/{segment(id_or_slug)}"
    found: dict[str, Json] = session.client.get(path, answers.Workflow).data
    return found


def workflow_name(session: Session, workflow_id: str) -> str:
    try:
        return str(find_workflow(session, workflow_id)["slug"])
    except CommandError:
        return workflow_id  # deleted since, or the key may not read workflows


def dry_run_option(command: Any) -> Any:
    return click.option("--dry-run", is_flag=True, help="Only show what would happen.")(command)


def watch_option(command: Any) -> Any:
    return click.option(
        "--watch", is_flag=True, help="Follow the run; the exit status is its outcome."
    )(command)


@click.group(no_args_is_help=True)
def runs() -> None:
    """Look at runs and steer them."""


@runs.command("list")
@click.option("--status", type=click.Choice([str(s) for s in RunStatus]), help="Only these.")
@click.option("--workflow", metavar="ID|SLUG", help="Only runs of this workflow.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="Only with this tag.")
@click.option("--created-after", metavar="TIME", help="RFC 3339, e.g. 2026-01-31T00:00:00Z.")
@click.option("--created-before", metavar="TIME", help="RFC 3339.")
@click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=50,
    show_default=True,
    help="At most so many.",
)
@operator
def list_runs(
    session: Session,
    *,
    status: str | None,
    workflow: str | None,
    tags: tuple[str, ...],
    created_after: str | None,
    created_before: str | None,
    limit: int,
) -> None:
    """List runs, newest first."""
    workflow_id = workflow
    if workflow is not None:
        workflow_id = str(find_workflow(session, workflow)["id"])
    query: dict[str, str | list[str] | None] = {
        "project_id": session.project,
        "status": status,
        "workflow_id": workflow_id,
        "tag": [f"{k}:{v}" for k, v in key_values(tags, "--tag").items()],
        "created_after": created_after,
        "created_before": created_before,
    }
    names = {} if session.out.as_json else workflow_names(session)
    found = session.client.pages(RUNS, answers.Run, query, limit)
    session.out.rows(found, run_columns(names), empty="no runs")


@runs.command()
@click.argument("run_id", metavar="RUN")
@operator
def show(session: Session, run_id: str) -> None:
    """Show a run and its steps."""
    run = session.client.get(run_path(run_id), answers.Run).data
    steps = session.client.get(run_path(run_id, "steps"), list[answers.Step]).data
    if session.out.as_json:
        session.out.json_line({**run, "steps": steps})
        return
    show_run(session.out, run, steps, workflow_name(session, run["workflow_id"]))


@runs.command()
@click.argument("run_id", metavar="RUN")
@operator
def watch(session: Session, run_id: str) -> int:
    """Follow a run to its end; the exit status is its outcome."""
    from pilotage.cli.watch import watch_run

    # Only a server that has answered once is waited for while it is away.
    session.client.get(run_path(run_id), answers.Run)
    return watch_run(session, run_id)


@runs.command()
@click.argument("run_id", metavar="RUN")
@operator
def pause(session: Session, run_id: str) -> None:
    """Let nothing new start."""
    _act(session, run_path(run_id, "pause"), answers.Run, f"{run_id} is paused")


@runs.command()
@click.argument("run_id", metavar="RUN")
@operator
def resume(session: Session, run_id: str) -> None:
    """Let a paused run go on."""
    _act(session, run_path(run_id, "resume"), answers.Run, f"{run_id} goes on")


@runs.command()
@click.argument("run_ids", metavar="RUN...", nargs=-1, required=True)
@click.option("--reason", help="Why; stands in the run's error. With one RUN only.")
@dry_run_option
@operator
def cancel(session: Session, run_ids: Sequence[str], *, reason: str | None, dry_run: bool) -> int:
    """Cancel runs with everything in them that has not ended."""
    if len(run_ids) > 1 or dry_run:
        if reason is not None:
            raise CommandError("--reason works with one RUN, and not with --dry-run", USAGE)
        return _bulk(session, "bulk-cancel", run_ids, dry_run=dry_run)
    answer = session.client.request(
        "DELETE", run_path(run_ids[0]), answers.Run, query={"reason": reason}, headers=SHOW_RUN
    )
    session.out.done(f"{run_ids[0]} is canceled", answer.data)
    return 0


@runs.command()
@click.argument("run_id", metavar="RUN")
@dry_run_option
@watch_option
@operator
def retry(session: Session, run_id: str, *, dry_run: bool, watch: bool) -> int:
    """Start a new run that takes over what a failed one has done."""
    path = run_path(run_id, "retry")
    if dry_run:
        _preview(session, path)
        return 0
    return started(session, session.client.post(path, answers.Run).data, watch=watch)


@runs.command("retry-step")
@click.argument("run_id", metavar="RUN")
@click.argument("step")
@dry_run_option
@operator
def retry_step(session: Session, run_id: str, step: str, *, dry_run: bool) -> None:
    """Run one ended step again, in the same run."""
    path = step_path(run_id, step, "retry")
    if dry_run:
        _preview(session, path)
        return
    answer = session.client.post(path, answers.OneStep)
    now = answer.data["step_run"]
    session.out.done(f"{step} is {now['status']}, attempt {now['attempt']}", answer.data)


@runs.command()
@click.argument("run_id", metavar="RUN")
@click.argument("step", required=False)
@dry_run_option
@operator
def replay(session: Session, run_id: str, step: str | None, *, dry_run: bool) -> int:
    """Run STEP and all that depends on it again, in the same run; without STEP: a new run."""
    if step is None:
        return _bulk(session, "bulk-replay", (run_id,), dry_run=dry_run)
    path = step_path(run_id, step, "replay-subtree")
    if dry_run:
        _preview(session, path)
    else:
        answer = session.client.post(path, answers.Reset)
        count = answer.data["reset_steps"]
        session.out.done(f"{count} step(s) of {run_id} run again", answer.data)
    return 0


@runs.command()
@click.argument("run_id", metavar="RUN")
@click.argument("step")
@click.option("--comment", help="Stands in the step's output and in the history.")
@click.option("--as", "actor", metavar="NAME", help="Who decides, with an admin key.")
@operator
def approve(
    session: Session, run_id: str, step: str, *, comment: str | None, actor: str | None
) -> None:
    """Approve a step that waits for it."""
    body = _given(comment=comment)
    path = step_path(run_id, step, "approve")
    _act(session, path, answers.OneStep, f"{step} is approved", body, _headers_of(actor))


@runs.command()
@click.argument("run_id", metavar="RUN")
@click.argument("step")
@click.option("--reason", help="Why not.")
@click.option("--as", "actor", metavar="NAME", help="Who decides, with an admin key.")
@operator
def reject(
    session: Session, run_id: str, step: str, *, reason: str | None, actor: str | None
) -> None:
    """Reject a step that waits for an approval."""
    body = _given(reason=reason)
    path = step_path(run_id, step, "reject")
    _act(session, path, answers.OneStep, f"{step} is rejected", body, _headers_of(actor))


@runs.command()
@click.argument("run_id", metavar="RUN")
@click.argument("step")
@click.option("--reason", required=True, help="Why; shown on the step for good.")
@dry_run_option
@operator
def skip(session: Session, run_id: str, step: str, *, reason: str, dry_run: bool) -> None:
    """Do without a step: what depends on it goes on."""
    path = step_path(run_id, step, "skip")
    _act_or_preview(session, path, f"{step} is skipped", {"reason": reason}, dry_run=dry_run)


@runs.command()
@click.argument("run_id", metavar="RUN")
@click.argument("step")
@click.option("--result", metavar="JSON|@FILE", help="The output that the step shall have.")
@dry_run_option
@operator
def complete(
    session: Session, run_id: str, step: str, *, result: str | None, dry_run: bool
) -> None:
    """Call a step done, with the result given."""
    path = step_path(run_id, step, "force-complete")
    body = {} if result is None else {"result": json_or_none(result, "--result")}
    _act_or_preview(session, path, f"{step} is completed", body, dry_run=dry_run)


@runs.command()
@click.argument("run_id", metavar="RUN")
@operator
def explain(session: Session, run_id: str) -> None:
    """Say of every step that has not ended what it waits for."""
    data = session.client.get(run_path(run_id, "explain"), answers.Explained).data
    if session.out.as_json:
        session.out.json_line(data)
        return
    session.out.say(f"{run_id} is {data['status']}")
    session.out.rows(data["steps"], EXPLAIN_COLUMNS, empty="every step has ended")


@runs.command()
@click.argument("run_id", metavar="RUN")
@click.option("--after", type=click.IntRange(0), default=0, help="Only after this number.")
@click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=1000,
    show_default=True,
    help="At most so many.",
)
@operator
def events(session: Session, run_id: str, *, after: int, limit: int) -> None:
    """List what happened in a run: every transition, when and by whom."""
    from pilotage.cli.watch import history

    session.out.rows(history(session.client, run_id, after, limit), EVENT_COLUMNS, "nothing yet")


@runs.command()
@click.argument("run_id", metavar="RUN")
@operator
def pin(session: Session, run_id: str) -> None:
    """Keep a run beyond its retention."""
    _act(session, run_path(run_id, "pin"), answers.Run, f"{run_id} is kept")


@runs.command()
@click.argument("run_id", metavar="RUN")
@operator
def unpin(session: Session, run_id: str) -> None:
    """Let a run go when its retention ends."""
    _act(session, run_path(run_id, "unpin"), answers.Run, f"{run_id} is kept no longer than others")


# --- what they share ---------------------------------------------------------------------------


def _dry(*, dry: bool) -> dict[str, str | int | list[str] | None]:
    return {"dry_run": "true" if dry else None}


def _given(**values: str | None) -> dict[str, str]:
    return {name: value for name, value in values.items() if value is not None}


def _headers_of(actor: str | None) -> dict[str, str]:
    return {} if actor is None else {"X-Actor-Id": actor}


def _act(
    session: Session,
    path: str,
    shape: Shape,
    words: str,
    body: Json = None,
    headers: Mapping[str, str] | None = None,
) -> None:
    answer = session.client.post(path, shape, body, headers={**SHOW_RUN, **(headers or {})})
    session.out.done(words, answer.data)


def _act_or_preview(session: Session, path: str, words: str, body: Json, *, dry_run: bool) -> None:
    if not dry_run:
        _act(session, path, answers.OneStep, words, body)
        return
    _preview(session, path, body)


def _preview(session: Session, path: str, body: Json = None) -> None:
    answer = session.client.post(path, answers.Preview, body, query=_dry(dry=True))
    show_preview(session.out, answer.data)


_BULK_COLUMNS = [
    Column("RUN", key("workflow_run_id")),
    Column("OUTCOME", key("status")),
    Column("NEW RUN", key("new_workflow_run_id")),
    Column("ERROR", key("error"), fold=True),
]


def _bulk(session: Session, verb: str, run_ids: Sequence[str], *, dry_run: bool) -> int:
    """A bulk operation in batches of what the API takes; status 1 if any item failed."""
    results: list[dict[str, Json]] = []
    for start in range(0, len(run_ids), 100):
        body = {"workflow_run_ids": list(run_ids[start : start + 100])}
        path = f"{RUNS}/{verb}"
        answer = session.client.post(path, answers.Bulk, body, query=_dry(dry=dry_run)).data
        results += answer["results"]
    session.out.rows(results, _BULK_COLUMNS)
    if dry_run:
        session.out.say("nothing was changed")
    return FAILED if any(item.get("status") == "failed" for item in results) else 0


def started(session: Session, run: dict[str, Json], *, watch: bool) -> int:
    """Tell that a run was started; follow it when asked to."""
    if not watch:
        session.out.done(f"{run['id']} is {run['status']}", run)
        return 0
    from pilotage.cli.watch import watch_run

    return watch_run(session, run["id"])

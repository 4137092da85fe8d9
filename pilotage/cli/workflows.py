"""`pilotage trigger`, `pilotage workflows`, `pilotage jobs`: definitions on a server."""

from __future__ import annotations

import click

from pilotage.cli import answers
from pilotage.cli.answers import Json
from pilotage.cli.client import segment
from pilotage.cli.output import Column, Item, key
from pilotage.cli.session import Session, key_values, operator, parse_json
from pilotage.cli.text import ago, duration

WORKFLOWS = "/v1/workflows"
JOBS = "/v1/jobs"

WORKFLOW_COLUMNS = [
    Column("SLUG", key("slug")),
    Column("NAME", key("name")),
    Column("VERSION", key("version"), right=True),
    Column("STEPS", key("step_count"), right=True),
    Column("ENABLED", key("enabled")),
    Column("CRON", key("cron")),
    Column("UPDATED", lambda item: ago(item.get("updated_at"))),
    Column("ID", key("id"), "dim"),
]
JOB_COLUMNS = [
    Column("SLUG", key("slug")),
    Column("MODE", key("execution_mode")),
    Column("ATTEMPTS", key("max_attempts"), right=True),
    Column("TIMEOUT", lambda item: _secs(item.get("timeout_secs"))),
    Column("LIMIT", key("max_concurrency"), right=True),
    Column("ENDPOINT", key("endpoint_url")),
    Column("ENABLED", key("enabled")),
    Column("ID", key("id"), "dim"),
]


def what_a_step_does(step: Item) -> str:
    kind = step.get("step_type", "job")
    if kind == "sleep":
        return _secs(step.get("sleep_duration_secs"))
    if kind == "approval":
        return ", ".join(step.get("approval_approvers") or []) or "anyone who may"
    for name in ("job_id", "event_key", "sub_workflow_id"):
        if step.get(name):
            return str(step[name])
    return ""


STEP_COLUMNS = [
    Column("STEP", key("step_ref")),
    Column("TYPE", lambda step: step.get("step_type", "job")),
    Column("AFTER", lambda step: ", ".join(step.get("depends_on") or [])),
    Column("DOES", what_a_step_does, fold=True),
]


def _secs(value: object) -> str:
    return duration(float(value)) if isinstance(value, int | float) else ""


def workflow_path(id_or_slug: str, *rest: str) -> str:
    return "/".join([WORKFLOWS, segment(id_or_slug), *rest])


@click.command()
@click.argument("workflow")
@click.option("--payload", metavar="JSON|@FILE", help="What the run works on.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="Repeatable.")
@click.option("--delay", type=click.FloatRange(min=0), metavar="SECS", help="Start later.")
@click.option("--idempotency-key", metavar="TEXT", help="The same key starts only one run.")
@click.option("--watch", is_flag=True, help="Follow the run; the exit status is its outcome.")
@operator
def trigger(
    session: Session,
    workflow: str,
    *,
    payload: str | None,
    tags: tuple[str, ...],
    delay: float | None,
    idempotency_key: str | None,
    watch: bool,
) -> int:
    """Start a run of a workflow, named by its id or slug."""
    from pilotage.cli.runs import started

    body: dict[str, Json] = {}
    if payload is not None:
        body["payload"] = parse_json(payload, "--payload")
    if tags:
        body["tags"] = key_values(tags, "--tag")
    if delay is not None:
        body["delay_secs"] = delay
    path = workflow_path(workflow, "trigger")
    run = session.client.post(path, answers.Run, body, idempotency_key=idempotency_key).data
    return started(session, run, watch=watch)


@click.group(no_args_is_help=True)
def workflows() -> None:
    """Look at workflows and delete them."""


@workflows.command("list")
@click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=100,
    show_default=True,
    help="At most so many.",
)
@operator
def list_workflows(session: Session, *, limit: int) -> None:
    """List workflows, newest first."""
    found = session.client.pages(
        WORKFLOWS, answers.Workflow, {"project_id": session.project}, limit
    )
    session.out.rows(found, WORKFLOW_COLUMNS, empty="no workflows")


@workflows.command("show")
@click.argument("workflow")
@operator
def show_workflow(session: Session, workflow: str) -> None:
    """Show a workflow and its steps."""
    found = session.client.get(workflow_path(workflow), answers.Workflow).data
    if session.out.as_json:
        session.out.json_line(found)
        return
    limits = {
        "max_concurrent_runs": found.get("max_concurrent_runs"),
        "max_parallel_steps": found.get("max_parallel_steps"),
        "timeout": _secs(found.get("timeout_secs")) if found.get("timeout_secs") else None,
    }
    session.out.fields(
        [
            ("workflow", f"{found['slug']} ({found['name']})"),
            ("id", found["id"]),
            ("project", found["project_id"]),
            ("description", found.get("description")),
            ("version", f"{found['version']} ({found.get('version_id', '')})"),
            ("enabled", "yes" if found.get("enabled", True) else "no"),
            ("cron", found.get("cron")),
            *((name, value or None) for name, value in limits.items()),
            ("updated", ago(found.get("updated_at"))),
        ]
    )
    session.out.say()
    session.out.table(found.get("steps") or [], STEP_COLUMNS)


@workflows.command("delete")
@click.argument("workflow")
@operator
def delete_workflow(session: Session, workflow: str) -> None:
    """Delete a workflow that has no active runs."""
    session.client.request("DELETE", workflow_path(workflow), answers.Nothing)
    session.out.done(f"{workflow} is deleted", {"workflow": workflow, "deleted": True})


@click.group(no_args_is_help=True)
def jobs() -> None:
    """Look at jobs."""


@jobs.command("list")
@click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=100,
    show_default=True,
    help="At most so many.",
)
@operator
def list_jobs(session: Session, *, limit: int) -> None:
    """List jobs, newest first."""
    found = session.client.pages(JOBS, answers.Job, {"project_id": session.project}, limit)
    session.out.rows(found, JOB_COLUMNS, empty="no jobs")

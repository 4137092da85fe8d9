"""`pilotage apply`: make the server's workflows and jobs what the files say.

A file is the whole truth of what it defines: a field that it does not give is reset to its
default, but `enabled` and a job's secret stay as they are. Applying the same file twice changes
nothing. Every file is read and checked before the first change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from pilotage.cli.answers import Job, Shape, Workflow
from pilotage.cli.client import Client, segment
from pilotage.cli.errors import USAGE, CommandError, RefusedError
from pilotage.cli.files import DefinitionFileError, LoadedFile, load_definition
from pilotage.cli.output import Column, key
from pilotage.cli.session import Session, operator
from pilotage.runtime.errors import DefinitionError
from pilotage.runtime.validation import parse_job, parse_workflow
from pilotage.runtime.validation_identity import SERVER_SET, make_slug

_WORKFLOW_FIELDS = (
    "name", "description", "tags", "timeout_secs", "max_concurrent_runs", "max_parallel_steps",
    "cron", "cron_timezone", "skip_if_running",
)  # fmt: skip
_JOB_FIELDS = (
    "name", "tags", "endpoint_url", "execution_mode", "max_attempts", "timeout_secs",
    "retry_backoff", "retry_initial_delay_secs", "retry_max_delay_secs", "max_concurrency",
    "heartbeat_timeout_secs",
)  # fmt: skip
_ALIASES = {"cron_timezone": "timezone"}

COLUMNS = [
    Column("KIND", key("kind")),
    Column("SLUG", key("slug")),
    Column("OUTCOME", key("outcome")),
    Column("VERSION", key("version"), right=True),
    Column("FILE", key("file"), "dim"),
]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to be made or changed."""

    kind: str
    path: str
    body: dict[str, Any]
    file: str

    @property
    def slug(self) -> str:
        given = self.body.get("slug")
        return str(given if given is not None else make_slug(str(self.body.get("name", ""))))

    @property
    def shape(self) -> Shape:
        return Workflow if self.kind == "workflow" else Job

    def whole(self) -> dict[str, Any]:
        """The body with a null for every field that the file leaves out."""
        fields = _WORKFLOW_FIELDS if self.kind == "workflow" else _JOB_FIELDS
        absent = {
            name: None
            for name in fields
            if name not in self.body and _ALIASES.get(name) not in self.body
        }
        if "name" in absent:
            absent.pop("name")
        return {**absent, **self.body}


def read_files(paths: tuple[Path, ...]) -> list[Target]:
    """Everything the files define, jobs first; raises with the problems of all files."""
    targets: list[Target] = []
    problems: list[str] = []
    for path in paths:
        try:
            loaded = load_definition(path)
        except DefinitionFileError as error:
            problems.append(str(error))
            continue
        except DefinitionError as error:
            problems += [f"{path}: {problem}" for problem in error.problems]
            continue
        problems += [f"{path}: {problem}" for problem in check(loaded)]
        targets += _targets(loaded, str(path))
    slugs = [(target.kind, target.slug) for target in targets]
    problems += [
        f"{kind} {slug} is defined more than once"
        for kind, slug in dict.fromkeys(slugs)
        if slugs.count((kind, slug)) > 1
    ]
    if problems:
        raise CommandError(f"{len(problems)} problem(s); nothing was changed", USAGE, problems)
    return _in_order(targets)


def _in_order(targets: list[Target]) -> list[Target]:
    """Jobs, then workflows, those that others of the files run as sub-workflows before these."""
    workflows = {target.slug: target for target in targets if target.kind == "workflow"}
    placed: dict[str, Target] = {}

    def place(target: Target, above: frozenset[str]) -> None:
        # A cycle of sub-workflows is for the server to refuse; here it only must not hang.
        if target.slug in placed or target.slug in above:
            return
        for step in target.body.get("steps") or ():
            needed = workflows.get(str(step.get("sub_workflow_id")))
            if needed is not None:
                place(needed, above | {target.slug})
        placed[target.slug] = target

    for target in workflows.values():
        place(target, frozenset())
    return [target for target in targets if target.kind == "job"] + list(placed.values())


def check(loaded: LoadedFile) -> Iterator[str]:
    """What is wrong with a file as far as can be told without the server."""
    for i, job in enumerate(loaded.jobs):
        try:
            parse_job(job)
        except DefinitionError as error:
            yield from (f"jobs[{i}].{problem}" for problem in error.problems)
    try:
        parse_workflow(loaded.workflow, resolve=AnyReference())
    except DefinitionError as error:
        yield from error.problems


class AnyReference:
    """A resolver that takes every reference; the server has the last word on them."""

    def job(self, id_or_slug: str) -> str | None:
        return id_or_slug

    def workflow(self, id_or_slug: str) -> str | None:
        return id_or_slug


def _targets(loaded: LoadedFile, file: str) -> Iterator[Target]:
    for job in loaded.jobs:
        yield Target(kind="job", path="/v1/jobs", body=job, file=file)
    yield Target(kind="workflow", path="/v1/workflows", body=loaded.workflow, file=file)


def find(client: Client, target: Target) -> dict[str, Any] | None:
    try:
        path = f"{target.path}/{segment(target.slug)}"
        found: dict[str, Any] = client.get(path, target.shape).data
    except RefusedError as error:
        if error.status == 404:
            return None
        raise
    return found


def _apply(client: Client, target: Target, *, dry_run: bool) -> dict[str, Any]:
    before = find(client, target)
    line: dict[str, Any] = {"kind": target.kind, "slug": target.slug, "file": target.file}
    if dry_run:
        return {**line, "outcome": "would be created" if before is None else "would be updated"}
    if before is None:
        made = client.post(target.path, target.shape, target.body).data
        return {**line, "outcome": "created", **_identity(made)}
    patch = f"{target.path}/{segment(target.slug)}"
    after = client.request("PATCH", patch, target.shape, body=target.whole()).data
    outcome = "unchanged" if _content(before) == _content(after) else "updated"
    return {**line, "outcome": outcome, **_identity(after)}


def _identity(item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: item[name] for name in ("id", "version") if name in item}


def _content(item: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in SERVER_SET - {"version"}}


@click.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@click.option("--dry-run", is_flag=True, help="Check the files and say what would be done.")
@operator
def apply(session: Session, files: tuple[Path, ...], *, dry_run: bool) -> None:
    """Create or update workflows and jobs from YAML, TOML or JSON files."""
    targets = read_files(files)
    done = [_apply(session.client, target, dry_run=dry_run) for target in targets]
    session.out.rows(done, COLUMNS)

"""Workflows, their versions, and jobs: the definitions of a project, as values and as records."""

from __future__ import annotations

import msgspec

from pilotage.runtime.definition import JobSpec, WorkflowSpec


class Workflow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A workflow with its newest version. `revision` counts the changes of any kind."""

    id: str
    project_id: str
    name: str
    slug: str
    description: str | None = None
    tags: dict[str, str] = {}
    enabled: bool = True
    version: int
    version_id: str
    spec: WorkflowSpec
    created_by: str | None = None
    created_at_ms: int
    updated_at_ms: int
    revision: int = 1


class WorkflowVersion(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What runs of this version run; never changed, and kept as long as runs refer to it."""

    id: str
    workflow_id: str
    project_id: str
    version: int
    spec: WorkflowSpec
    created_by: str | None = None
    created_at_ms: int


class Job(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A job. One that exists only as a registered Python function has its name as id."""

    id: str
    project_id: str
    name: str
    slug: str
    spec: JobSpec
    tags: dict[str, str] = {}
    enabled: bool = True
    created_at_ms: int
    updated_at_ms: int
    revision: int = 1


def same_spec(a: WorkflowSpec, b: WorkflowSpec) -> bool:
    """Whether two specifications run the same; the order of keys in objects does not matter."""
    return msgspec.json.encode(a, order="sorted") == msgspec.json.encode(b, order="sorted")

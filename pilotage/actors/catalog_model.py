"""Workflows, their versions, and jobs: the definitions of a project, as values and as records."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from pilotage.persistence.port import StoreError
from pilotage.runtime.definition import JobSpec, WorkflowSpec

SCHEMA = b"\x01"
"""First byte of every stored definition: the version of its encoding."""


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
    """What runs of this version run; never changed and never deleted, runs refer to it."""

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


class UnknownSchemaError(StoreError):
    """A definition was written by a newer version of this software."""

    def __init__(self, what: str, found: int) -> None:
        super().__init__(
            f"stored {what} has encoding version {found}; this release reads up to "
            f"{SCHEMA[0]}: start the release that wrote it, or a newer one"
        )
        self.found = found


T = TypeVar("T")


def encode(value: Workflow | WorkflowVersion | Job) -> bytes:
    return SCHEMA + msgspec.json.encode(value)


def decoder_for(type_: type[T]) -> msgspec.json.Decoder[T]:
    return msgspec.json.Decoder(type_)


def decode(data: bytes, decoder: msgspec.json.Decoder[T], what: str) -> T:
    if data[:1] != SCHEMA:
        raise UnknownSchemaError(what, data[0] if data else 0)
    return decoder.decode(memoryview(data)[1:])


def same_spec(a: WorkflowSpec, b: WorkflowSpec) -> bool:
    """Whether two specifications run the same; the order of keys in objects does not matter."""
    return msgspec.json.encode(a, order="sorted") == msgspec.json.encode(b, order="sorted")

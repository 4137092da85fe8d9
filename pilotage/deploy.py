"""Definitions of files and of Python apps into the catalog of a runtime in this process.

What is there already and says the same is left alone, so that starting an app again makes no new
versions; what says something else becomes the next version. `enabled` stays as the operator left
it unless the definition names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from pilotage.actors.catalog import Catalog
from pilotage.actors.catalog_model import Job, Workflow, same_spec
from pilotage.actors.errors import NotFoundError
from pilotage.runtime.validation import ParsedJob, ParsedWorkflow, parse_job


async def put_workflow(
    catalog: Catalog, project_id: str, definition: Mapping[str, Any], *, by: str
) -> Workflow:
    """The workflow as the definition has it; `DefinitionError` lists what is wrong with that."""
    parsed = await catalog.parse_workflow(project_id, definition)
    try:
        current = await catalog.workflow(project_id, parsed.slug)
    except NotFoundError:
        return await catalog.create_workflow(parsed, project_id=project_id, created_by=by)
    if "enabled" not in definition:
        parsed = msgspec.structs.replace(parsed, enabled=current.enabled)
    if _same_workflow(current, parsed):
        return current
    return await catalog.update_workflow(current, parsed, updated_by=by)


async def put_job(catalog: Catalog, project_id: str, definition: Mapping[str, Any]) -> Job:
    """The job as the definition has it. A secret that it does not name stays."""
    parsed = parse_job(definition)
    try:
        current = await catalog.job(project_id, parsed.slug)
    except NotFoundError:
        return await catalog.create_job(parsed, project_id=project_id)
    if "enabled" not in definition:
        parsed = msgspec.structs.replace(parsed, enabled=current.enabled)
    if "signing_secret" not in definition:
        spec = msgspec.structs.replace(parsed.spec, signing_secret=current.spec.signing_secret)
        parsed = msgspec.structs.replace(parsed, spec=spec)
    return current if _same_job(current, parsed) else await catalog.update_job(current, parsed)


def _same_workflow(current: Workflow, parsed: ParsedWorkflow) -> bool:
    return (
        current.name == parsed.name
        and current.description == parsed.description
        and current.tags == dict(parsed.tags)
        and current.enabled == parsed.enabled
        and same_spec(current.spec, parsed.spec)
    )


def _same_job(current: Job, parsed: ParsedJob) -> bool:
    return (
        current.name == parsed.name
        and current.tags == dict(parsed.tags)
        and current.enabled == parsed.enabled
        and current.spec == parsed.spec
    )

"""Finding definitions: by id or slug, in a project, and what an unchecked workflow refers to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar
from uuid import UUID

import msgspec

from pilotage.actors.catalog_records import Filed, Position, Shelf
from pilotage.actors.errors import InvalidError, NotFoundError
from pilotage.runtime.jsonvalues import is_array, is_object
from pilotage.runtime.validation_steps import MAX_STEPS

_SCAN_PAGE = 100
D = TypeVar("D", bound=Filed)


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """A `Resolver` of what was looked up."""

    jobs: Mapping[str, str]
    workflows: Mapping[str, str]

    def job(self, id_or_slug: str) -> str | None:
        return self.jobs.get(id_or_slug)

    def workflow(self, id_or_slug: str) -> str | None:
        return self.workflows.get(id_or_slug)


def references(raw: Any, field: str) -> list[str]:
    """The texts in `field` of the steps of an unchecked workflow, each once."""
    steps = raw.get("steps") if is_object(raw) else None
    if not is_array(steps):
        return []
    refs = (step.get(field) for step in steps[:MAX_STEPS] if is_object(step))
    return list(dict.fromkeys(ref for ref in refs if isinstance(ref, str) and len(ref) <= 255))


def all_known(raw: Any) -> Known:
    """Where the project is not known: whatever `raw` refers to may be there."""
    jobs = {ref: ref for ref in references(raw, "job_id")}
    return Known(jobs=jobs, workflows={ref: ref for ref in references(raw, "sub_workflow_id")})


async def find(shelf: Shelf[D], project_id: str, id_or_slug: str) -> D | None:
    if looks_like_id(id_or_slug):
        found = await shelf.get(id_or_slug)
        if found is not None and found.project_id == project_id:
            return found
    return await shelf.find(project_id, id_or_slug)


def at_hand(shelf: Shelf[D], project_id: str, id_or_slug: str) -> D | None:
    """What `find` would give without asking the store; None says nothing."""
    found = shelf.cached(id_or_slug)
    if found is None and looks_like_id(id_or_slug):
        return None
    if found is not None and found.project_id == project_id:
        return found
    return shelf.cached_slug(project_id, id_or_slug)


async def look_up(
    shelf: Shelf[D], what: str, project_id: str | None, id_or_slug: str, *, of_any: bool = False
) -> D:
    """`of_any`: an id is found whatever its project; what is none may be a slug that looks so."""
    found: D | None = None
    by_id = looks_like_id(id_or_slug)
    if by_id and (of_any or project_id is None):
        found = await shelf.get(id_or_slug)
    if found is None and project_id is not None:
        found = await find(shelf, project_id, id_or_slug)
    elif not by_id:
        raise InvalidError(
            f'"{id_or_slug}" is a slug, and an admin key has no project of its own',
            [f"project_id: name the project of the {what} with the header X-Project-Id"],
        )
    if found is None:
        raise unknown(what, id_or_slug)
    return found


async def each(shelf: Shelf[D], partition: str | None) -> AsyncIterator[D]:
    after: Position | None = None
    while True:
        page, after = await shelf.page(partition, _SCAN_PAGE, after)
        for item in page:
            yield item
        if after is None:
            return


def looks_like_id(text: str) -> bool:
    if len(text) != 36:
        return False
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def unknown(what: str, name: str) -> NotFoundError:
    return NotFoundError(f'unknown {what} "{name}"')

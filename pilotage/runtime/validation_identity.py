"""What workflows and jobs have in common: name, slug, description, tags, enabled, project.

Bounds. `name` 1–255 characters · `slug` 1–255 of letters, digits, `_`, `.`, `-`, the first a
letter or digit · `description` at most 2,000 · `tags` at most 20, keys 1–64, values at most 256 ·
`project_id` `[A-Za-z0-9_.-]{1,128}`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Final

from pilotage.runtime.errors import DefinitionError
from pilotage.runtime.jsonvalues import show
from pilotage.runtime.validation_fields import Problems, Reader, flag, tags, text

MAX_NAME_CHARS: Final = 255
MAX_DESCRIPTION_CHARS: Final = 2_000

SLUG_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")
PROJECT_PATTERN: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_NO_SLUG_CHARS = re.compile(r"[^a-z0-9]+")

IDENTITY_READERS: Final[dict[str, Reader]] = {
    "name": text(most=MAX_NAME_CHARS),
    "slug": text(most=MAX_NAME_CHARS, pattern=SLUG_PATTERN),
    "description": text(most=MAX_DESCRIPTION_CHARS, least=0),
    "tags": tags,
    "enabled": flag,
    "project_id": text(most=128, pattern=PROJECT_PATTERN),
}

SERVER_SET: Final = frozenset(
    {"id", "version", "version_id", "created_by", "created_at", "updated_at"}
)


def make_slug(name: str) -> str:
    """`Order pipeline №2` -> `order-pipeline-no2`; empty if nothing of the name can stand."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return _NO_SLUG_CHARS.sub("-", plain).strip("-")[:MAX_NAME_CHARS].rstrip("-")


def complete_identity(fields: dict[str, Any], given: Mapping[Any, Any], problems: Problems) -> None:
    """Name and slug default to each other; without either the object has no identity."""
    name, slug = given.get("name"), given.get("slug")
    if name is None and slug is None:
        problems.add("name", "is required (or a slug)")
    elif name is None and "slug" in fields:
        fields["name"] = fields["slug"]
    elif slug is None and "name" in fields:
        fields["slug"] = make_slug(fields["name"])
        if not fields["slug"]:
            problems.add("slug", f"is required: none can be made of the name {show(name)}")


def keep_project(raw: Mapping[Any, Any], current: str | None) -> dict[Any, Any]:
    """The patch with the stored project: nothing moves to another; raises DefinitionError."""
    if current is None:
        return dict(raw)
    wanted = raw.get("project_id")
    if wanted is not None and wanted != current:
        raise DefinitionError([f"project_id: cannot be changed, it is {show(current)}"])
    return {**raw, "project_id": current}

"""Who asks: the principal that a credential stands for, and what it may do."""

from __future__ import annotations

import msgspec

ANY = "*"
"""As a project: every project (an admin key). As a scope: every scope."""

SCOPES = (
    "workflows:read",
    "workflows:write",
    "workflows:trigger",
    "jobs:read",
    "jobs:write",
    "api-keys:manage",
    ANY,
)
"""All scopes a key can have, in the order they are shown."""


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """`name` stands in histories and is matched against approvers; `key_id` is None for the
    admin key of the settings.
    """

    name: str
    project_id: str
    scopes: frozenset[str]
    key_id: str | None = None

    @property
    def is_admin(self) -> bool:
        """Not bound to one project."""
        return self.project_id == ANY

    def may(self, scope: str) -> bool:
        return scope in self.scopes or ANY in self.scopes

    def sees(self, project_id: str) -> bool:
        return self.project_id in {ANY, project_id}


ADMIN = Principal(name="admin", project_id=ANY, scopes=frozenset({ANY}))
"""The admin key of the settings."""

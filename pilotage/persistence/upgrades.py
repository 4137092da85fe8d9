"""How the values of older schema versions become values of the present one.

A change of stored types that defaults alone cannot bridge (a field renamed, required or of
another meaning) raises `codec.SCHEMA_VERSION` by one and adds an entry here for each type
concerned. Entries stay for good: a store may hold values of every version at once. They are applied
in order when a value is read; the stored one is made anew by the next write of what it is part of.

`tests/golden` has values and a whole store of every version, so that none of them is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

Upgrade = Callable[[Any], Any]

UPGRADES: Final[dict[tuple[int, str], Upgrade]] = {}
"""(version, name of the type) -> what makes a raw value of that version one of the next.

A raw value is what msgpack or JSON gives: a mapping, of a `StepState` a list. Names: `RunHead`,
`RunVitals`, `StepState`, `Message` (any outbox message), and of a record its struct's. What has
no entry is the same in both versions.
"""


def upgraded(raw: Any, type_name: str, version: int, newest: int) -> Any:
    """The raw value as the newest version would have written it."""
    for since in range(version, newest):
        upgrade = UPGRADES.get((since, type_name))
        if upgrade is not None:
            raw = upgrade(raw)
    return raw

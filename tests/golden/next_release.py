"""The release after this one: a copy of the sources in which every stored type has another form.

Maps have a field renamed, arrays one more in the middle or two exchanged; `UPGRADES` says how to
come from the present form to that one. Nothing in the product knows of it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pilotage
from pilotage.persistence.codec import SCHEMA_VERSION

ROOT = Path(__file__).resolve().parents[2]
VERSION = SCHEMA_VERSION + 1
RELEASE = "99.0.0"

RENAMED = {
    "runtime/state.py": {"RunHead": "workflow_slug", "RunVitals": "status"},
    "runtime/history.py": {"HistoryEntry": "actor"},
    "runtime/effects.py": {"TellParent": "status", "TellChild": "what", "EmitEvent": "event_key"},
    "actors/job_runs.py": {"JobRunRecord": "status"},
    "actors/catalog_model.py": {"Workflow": "spec", "WorkflowVersion": "spec", "Job": "spec"},
    "actors/cron_triggers.py": {"Decided": "fire_ms"},
    "actors/catalog_deleted.py": {"Deleted": "slug"},
    "actors/api_keys.py": {"ApiKey": "hash"},
    "actors/idempotency.py": {"Remembered": "status"},
}
"""Module -> type -> the field that has another name in the store."""
ARRAYS = {
    "runtime/state.py": ("    attempt: int = 0\n", "    attempt: int = 0\n    weight: int = 7\n"),
    "actors/event_hub.py": (
        "    event_id: str\n    expires_at_ms: int\n    payload: bytes | None = None\n",
        "    expires_at_ms: int\n    event_id: str\n    payload: bytes | None = None\n",
    ),
}
UPGRADES = f"""
    ({SCHEMA_VERSION}, "StepState"): lambda raw: [*raw[:3], 7, *raw[3:]] if len(raw) > 3 else raw,
    ({SCHEMA_VERSION}, "KeptEvent"): lambda raw: [raw[1], raw[0], *raw[2:]],
    ({SCHEMA_VERSION}, "Message"): lambda raw: {{
        key if key not in {{"status", "what", "event_key"}} else key + "_2": value
        for key, value in raw.items()
    }},
"""


def stored_types() -> set[str]:
    """Everything whose form differs."""
    renamed = {name for fields in RENAMED.values() for name in fields}
    return renamed | {"StepState", "KeptEvent"}


def make(folder: Path) -> Path:
    """The tree of that release, with its tests folder beside it."""
    shutil.copytree(
        ROOT / "pilotage", folder / "pilotage", ignore=shutil.ignore_patterns("__pycache__")
    )
    (folder / "tests").symlink_to(ROOT / "tests")
    tree = folder / "pilotage"
    upgrades = UPGRADES
    for module, types in RENAMED.items():
        for name, field in types.items():
            _rename(tree / module, name, field)
            if name not in {"TellParent", "TellChild", "EmitEvent"}:
                upgrades += _renaming(name, field)
    for module, (old, new) in ARRAYS.items():
        _change(tree / module, old, new)
    _change(
        tree / "persistence/codec.py",
        f"SCHEMA_VERSION: Final = {SCHEMA_VERSION}\n",
        f"SCHEMA_VERSION: Final = {VERSION}\n",
    )
    empty = "UPGRADES: Final[dict[tuple[int, str], Upgrade]] = {}\n"
    _change(tree / "persistence/upgrades.py", empty, empty.replace("{}", f"{{{upgrades}}}"))
    _change(tree / "__init__.py", f'"{pilotage.__version__}"', f'"{RELEASE}"')
    return folder


def _renaming(name: str, field: str) -> str:
    return (
        f'    ({SCHEMA_VERSION}, "{name}"): lambda raw: '
        f'{{"{field}_2" if key == "{field}" else key: raw[key] for key in raw}},\n'
    )


def _rename(module: Path, name: str, field: str) -> None:
    """Another name in the store only: the code goes on under the old one."""
    text = module.read_text(encoding="utf-8")
    start = text.index(f"class {name}(")
    end = text.index("):\n", start)
    changed = f'{text[:end]}, rename={{"{field}": "{field}_2"}}{text[end:]}'
    module.write_text(changed, encoding="utf-8")


def _change(module: Path, old: str, new: str) -> None:
    text = module.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{module.name} has {text.count(old)} times {old!r}"
    module.write_text(text.replace(old, new), encoding="utf-8")

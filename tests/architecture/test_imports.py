"""Imports point one way, and what a layer must not know it does not import."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from tests.architecture.source import Source, imports_of, is_within, parse, sources


class Layer(NamedTuple):
    """What a folder may import of ours, and what it must not import of others.

    With `pure` everything that is not listed there is forbidden, the standard library included.
    `shared` is what may be known of a forbidden module all the same.
    """

    ours: tuple[str, ...]
    forbidden: tuple[str, ...] = ()
    pure: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()


# What a run is must be the same in a test, in a replay and after a crash: nothing that reads a
# clock, draws a number, waits, writes or talks.
PURE = (
    "__future__", "abc", "base64", "bisect", "collections", "contextlib", "copy", "dataclasses",
    "datetime",
    "decimal", "enum", "functools", "graphlib", "hashlib", "heapq", "itertools", "json", "math",
    "operator", "re", "string", "struct", "types", "typing", "unicodedata", "urllib.parse", "uuid",
    "zlib", "zoneinfo", "difflib",
    "cronsim", "jmespath", "msgspec", "re2",
)  # fmt: skip
SURFACES = ("litestar", "uvicorn", "click", "rich")
LAYERS = {
    "pilotage/runtime": Layer(ours=("pilotage.runtime",), pure=PURE),
    "pilotage/persistence": Layer(
        ours=(
            "pilotage.runtime",
            "pilotage.persistence",
            "pilotage.settings",
            "pilotage.__version__",
        ),
        forbidden=("pykka", "aiohttp", *SURFACES),
    ),
    "pilotage/actors": Layer(
        ours=(
            "pilotage.runtime",
            "pilotage.persistence",
            "pilotage.actors",
            "pilotage.settings",
            "pilotage.__version__",
        ),
        forbidden=("redis", "valkey", *SURFACES),
    ),
    # Runs are reached through the gateway: neither the store's client nor an actor is known here.
    "pilotage/http": Layer(
        ours=(
            "pilotage.runtime",
            "pilotage.persistence.port",
            "pilotage.actors",
            "pilotage.http",
            "pilotage.settings",
            "pilotage.__version__",
        ),
        forbidden=("redis", "valkey", "pykka", "pilotage.actors.kernel", "click", "rich"),
        shared=("pilotage.actors.kernel.errors",),
    ),
    "pilotage/cli": Layer(ours=("pilotage",), forbidden=("valkey", "pykka")),
    "examples": Layer(ours=("pilotage",), forbidden=("pykka", "redis")),
}


def broken_rules(source: Source, layer: Layer) -> list[str]:
    found: list[str] = []
    for imported in imports_of(source):
        target = imported.target
        where = f"{source.at(imported.line)}: imports {target}"
        if any(is_within(target, name) for name in layer.shared):
            continue
        if any(is_within(target, name) for name in layer.forbidden):
            found.append(f"{where}, which this layer must not know")
        elif is_within(target, "pilotage"):
            if not any(is_within(target, name) for name in layer.ours):
                found.append(f"{where}, which is not below this layer")
        elif layer.pure and not any(is_within(target, name) for name in layer.pure):
            found.append(f"{where}, which is not on the list of pure modules")
    return found


@pytest.mark.parametrize("folder", LAYERS)
def test_a_layer_imports_only_what_is_below_it(folder: str) -> None:
    broken = [rule for s in sources(folder) for rule in broken_rules(s, LAYERS[folder])]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("pilotage/runtime", "import asyncio"),
        ("pilotage/runtime", "from time import time"),
        ("pilotage/runtime", "def f():\n    import random"),
        ("pilotage/runtime", "from pilotage.persistence import port"),
        ("pilotage/runtime", "from pilotage import settings"),
        ("pilotage/persistence", "import pykka"),
        ("pilotage/persistence", "from pilotage.actors.kernel import x"),
        ("pilotage/actors", "import redis.asyncio"),
        ("pilotage/actors", "from pilotage.http import app"),
        ("pilotage/http", "from redis import Redis"),
        ("pilotage/http", "from pilotage.persistence import redis_store"),
        ("pilotage/http", "from pilotage.actors.kernel.actor import LoopActor"),
        ("pilotage/http", "from pilotage.cli import main"),
        ("pilotage/cli", "import pykka"),
    ],
)
def test_the_rules_see_what_they_forbid(folder: str, line: str) -> None:
    assert broken_rules(parse("example.py", line), LAYERS[folder])


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("pilotage/runtime", "from collections.abc import Mapping"),
        ("pilotage/persistence", "from pilotage.runtime import status"),
        ("pilotage/http", "from pilotage.persistence.port import StoreUnavailableError"),
        ("pilotage/http", "from pilotage import __version__"),
        ("pilotage/cli", "from pilotage.http import app"),
    ],
)
def test_the_rules_let_pass_what_they_allow(folder: str, line: str) -> None:
    assert not broken_rules(parse("example.py", line), LAYERS[folder])

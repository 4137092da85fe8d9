"""The product's source as the architecture tests see it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Import(NamedTuple):
    """One imported name. `target` is dotted and absolute: `a.b.c` for `from a.b import c`."""

    line: int
    module: str
    target: str


class Source(NamedTuple):
    """One parsed file; `name` is its path from the root of the repository."""

    name: str
    text: str
    tree: ast.Module

    def at(self, line: int) -> str:
        return f"{self.name}:{line}"


@cache
def sources(*folders: str) -> tuple[Source, ...]:
    """Every Python file under the folders, parsed."""
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return tuple(parse(str(path.relative_to(ROOT)), path.read_text("utf-8")) for path in paths)


def parse(name: str, text: str) -> Source:
    return Source(name, text, ast.parse(text, filename=name))


def imports_of(source: Source) -> Iterator[Import]:
    """All imports, also those inside functions and under TYPE_CHECKING."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            for alias in node.names:
                yield Import(node.lineno, module, f"{module}.{alias.name}")


def is_within(target: str, package: str) -> bool:
    return target == package or target.startswith(package + ".")


def is_third_party(module: str) -> bool:
    top = module.partition(".")[0]
    own = {"pilotage", "tests", "benchmarks", "examples"}
    return top not in sys.stdlib_module_names and top not in own

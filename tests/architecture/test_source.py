"""Size, purity and the borders to other people's insides."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.architecture.source import Source, imports_of, is_third_party, parse, sources

EVERYTHING = ("pilotage", "tests", "benchmarks", "examples")
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60

# Where names are used that their owners have not published. Each has a contract test that fails
# when one of them changes, and a narrow bound in pyproject.toml.
PRIVATE_NAMES_ALLOWED = ("pilotage/actors/kernel/", "tests/contract/pykka/")

# Of the modules that the runtime may import, the functions that read the clock or draw a number.
IMPURE_CALLS = {
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
    "uuid": {"uuid1", "uuid4", "uuid6", "uuid7", "getnode"},
}


def long_functions(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield f"{source.at(node.lineno)}: {node.name} has {lines} lines"


def private_names(source: Source) -> Iterator[str]:
    """Private modules, private imported names, and private attributes of imported modules."""
    modules: set[str] = set()
    for imported in imports_of(source):
        if not is_third_party(imported.module):
            continue
        modules.add(imported.target.rpartition(".")[2])
        modules.add(imported.module.partition(".")[0])
        if any(is_private(part) for part in imported.target.split(".")):
            yield f"{source.at(imported.line)}: {imported.target} is private"
    for node in ast.walk(source.tree):
        if (
            isinstance(node, ast.Attribute)
            and is_private(node.attr)
            and isinstance(node.value, ast.Name)
            and node.value.id in modules
        ):
            yield f"{source.at(node.lineno)}: {node.value.id}.{node.attr} is private"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def impure_calls(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value).rpartition(".")[2]
            if node.func.attr in IMPURE_CALLS.get(owner, ()):
                yield f"{source.at(node.lineno)}: {ast.unparse(node.func)} is not pure"


def test_no_file_is_too_long() -> None:
    sizes = {source.name: len(source.text.splitlines()) for source in sources(*EVERYTHING)}
    assert not {name: lines for name, lines in sizes.items() if lines > MAX_FILE_LINES}


def test_no_function_is_too_long() -> None:
    found = [line for source in sources(*EVERYTHING) for line in long_functions(source)]
    assert not found, "\n".join(found)


def test_private_names_of_other_packages_stay_in_the_modules_that_declare_it() -> None:
    found = [
        line
        for source in sources(*EVERYTHING)
        if not source.name.startswith(PRIVATE_NAMES_ALLOWED)
        for line in private_names(source)
    ]
    assert not found, "\n".join(found)


def test_the_runtime_neither_asks_the_time_nor_draws_a_number() -> None:
    found = [line for source in sources("pilotage/runtime") for line in impure_calls(source)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "from pykka._actor import Actor",
        "from pykka import _actor",
        "import pykka._ref",
        "import pykka\nx = pykka._ref",
        "import redis.asyncio as r\nx = redis._compat",
    ],
)
def test_the_check_for_private_names_sees_them(text: str) -> None:
    assert list(private_names(parse("example.py", text)))


@pytest.mark.parametrize(
    "text",
    ["from pilotage.runtime import _x", "import re\nre._cache", "import pykka\npykka.__version__"],
)
def test_the_check_for_private_names_sees_only_those_of_others(text: str) -> None:
    assert not list(private_names(parse("example.py", text)))


def test_the_check_for_clocks_sees_them() -> None:
    text = "datetime.datetime.now()\ndate.today()\nuuid.uuid4()\nuuid.UUID('x')\n"
    assert len(list(impure_calls(parse("example.py", text)))) == 3


def test_the_check_for_length_sees_it() -> None:
    text = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES
    assert list(long_functions(parse("example.py", text)))

"""The documentation is code too: programs run and print what is written, commands and files are
valid, links lead somewhere, and the page of the command line is the command line's."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from pilotage.cli.apply import read_files
from pilotage.cli.root import root
from tests.cli.reference import page
from tests.cli.server import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


class Block(NamedTuple):
    """A fenced block; `expected` is the `text` block that follows it at once, if any."""

    page: str
    line: int
    language: str
    text: str
    expected: str | None

    @property
    def id(self) -> str:
        return f"{self.page}:{self.line}"


_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[Block]:
    found: list[Block] = []
    for file in PAGES:
        text = file.read_text("utf-8")
        for match in _FENCE.finditer(text):
            if match[1] == language:
                line = text.count("\n", 0, match.start()) + 1
                found.append(Block(file.name, line, language, match[2], match[3]))
    return found


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every `pilotage …` in shell blocks, and in code inside the pages' tables and sentences."""
    for block in blocks("sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "pilotage":
                yield f"{block.page}: {line}", words[1:]
    for file in PAGES:
        for code in re.findall(r"`(pilotage [a-z][^`\n]*)`", file.read_text("utf-8")):
            if file.name != "cli.md":
                yield f"{file.name}: {code}", shlex.split(code)[1:]


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.id)
def test_a_program_prints_what_is_written_below_it(block: Block, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(block.text)
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=45,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert block.expected is not None, "a program is followed by its output"
    assert done.stdout == block.expected


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.id)
def test_a_definition_is_valid(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "flow.yaml"
    file.write_text(block.text)
    assert read_files((file,))


@pytest.mark.parametrize(("where", "words"), list(commands()))
def test_a_command_is_one(where: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands and options exist and take these arguments; nothing is executed."""
    group: click.Command = root
    ctx = click.Context(root)
    while isinstance(group, click.Group) and words:
        found = group.get_command(ctx, words[0])
        assert found is not None, where
        group, words = found, words[1:]
    if isinstance(group, click.Group) or words == []:
        return  # it is named, not called
    for parameter in group.params:
        if isinstance(parameter.type, click.Path):
            monkeypatch.setattr(parameter.type, "exists", False)
    group.make_context("pilotage", words)


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_links_lead_somewhere(file: Path) -> None:
    text = file.read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        place, _, anchor = target.partition("#")
        if "://" in place:
            continue
        linked = (file.parent / place).resolve() if place else file
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text("utf-8"), re.MULTILINE)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, target


def test_the_page_of_the_command_line_is_up_to_date() -> None:
    written = (ROOT / "docs" / "cli.md").read_text("utf-8")
    assert written == page(), "python -m tests.cli.reference > docs/cli.md"

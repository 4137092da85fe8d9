from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, strategies as st

from pilotage.cli.files import DefinitionFileError, LoadedFile, load_definition
from pilotage.cli.wfformat import WFFORMAT_JOB, convert, make_refs
from pilotage.runtime.errors import DefinitionError, PilotageError
from pilotage.runtime.template_syntax import REF_PATTERN
from pilotage.runtime.templates import compile_template
from pilotage.runtime.validation import parse_workflow
from tests.support.definitions import FakeResolver, outcome
from tests.support.scope import FakeScope
from tests.support.strategies import GARBAGE, JSON

IDS = st.lists(
    st.text(min_size=1, max_size=140) | st.text("a._- {", min_size=1, max_size=4),
    min_size=1,
    max_size=12,
    unique=True,
)


@given(IDS)
def test_refs_of_tasks_are_distinct_and_valid(ids: list[str]) -> None:
    refs = make_refs(ids)
    assert len(set(refs.values())) == len(ids)
    assert all(REF_PATTERN.fullmatch(ref) for ref in refs.values())
    assert all(refs[task] == task for task in ids if REF_PATTERN.fullmatch(task))


@given(IDS.filter(lambda ids: not any("\0" in task for task in ids)), st.data())
def test_every_recording_of_a_graph_is_a_valid_workflow(
    ids: list[str], data: st.DataObject
) -> None:
    tasks = [
        {
            "id": task,
            "parents": data.draw(st.lists(st.sampled_from(ids[:i]), max_size=3)) if i else [],
        }
        for i, task in enumerate(ids)
    ]
    document = {"schemaVersion": "1.5", "workflow": {"specification": {"tasks": tasks}}}
    raw = convert(document).workflow
    found = parse_workflow(raw, resolve=FakeResolver(jobs=(WFFORMAT_JOB,)))
    named = [
        compile_template(step.payload).render(FakeScope())["task"] for step in found.spec.steps
    ]
    assert named == ids


@given(GARBAGE, GARBAGE)
def test_garbage_in_a_recording_is_a_definition_error(tasks: Any, execution: Any) -> None:
    specification = {"tasks": [{"id": "a", "parents": tasks}, tasks]}
    document = {
        "schemaVersion": "1.5",
        "workflow": {"specification": specification, "execution": execution},
    }
    found = outcome(lambda: convert(document), DefinitionError)
    if isinstance(found, DefinitionError):
        assert all(problem.startswith("workflow.") for problem in found.problems)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode)
       | JSON.map(lambda value: json.dumps(value).encode()),
       st.sampled_from([".yaml", ".json", ".toml"]))  # fmt: skip
def test_any_file_is_a_definition_or_an_error(content: bytes, ending: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{ending}"
        path.write_bytes(content)
        found = outcome(lambda: load_definition(path), PilotageError)
    assert isinstance(found, (LoadedFile, DefinitionFileError, DefinitionError))
    assert str(found)

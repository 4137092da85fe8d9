from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pilotage.cli import files
from pilotage.cli.files import (
    MAX_FILE_BYTES,
    DefinitionFileError,
    LoadedFile,
    load_definition,
)
from pilotage.runtime.validation import parse_job, parse_workflow
from tests.support.definitions import FakeResolver, problems_of

YAML = """\
# An order in two steps.
name: orders
cron: "0 9 * * MON"
steps:
  - step_ref: load
    job_id: j
    payload: {order: "{{ order.id }}"}
  - {step_ref: wait, type: sleep, sleep_duration_secs: 0.5, depends_on: [load]}
jobs:
  - slug: j
    endpoint_url: https://example.com/j
"""

TOML = """\
name = "orders"
cron = "0 9 * * MON"
[[steps]]
step_ref = "load"
job_id = "j"
payload = {order = "{{ order.id }}"}
[[steps]]
step_ref = "wait"
type = "sleep"
sleep_duration_secs = 0.5
depends_on = ["load"]
[[jobs]]
slug = "j"
endpoint_url = "https://example.com/j"
"""

WORKFLOW: dict[str, Any] = {
    "name": "orders",
    "cron": "0 9 * * MON",
    "steps": [
        {"step_ref": "load", "job_id": "j", "payload": {"order": "{{ order.id }}"}},
        {"step_ref": "wait", "type": "sleep", "sleep_duration_secs": 0.5, "depends_on": ["load"]},
    ],
}
JOBS = [{"slug": "j", "endpoint_url": "https://example.com/j"}]


def load(tmp_path: Path, name: str, text: str | bytes) -> LoadedFile:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_definition(path)


def refusal(tmp_path: Path, name: str, text: str | bytes) -> str:
    """The message without the folder."""
    with pytest.raises(DefinitionFileError) as caught:
        load(tmp_path, name, text)
    return str(caught.value).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", YAML),
        ("a.yml", YAML),
        ("A.YAML", "\ufeff" + YAML),
        ("a.toml", TOML),
        ("a.json", json.dumps({**WORKFLOW, "jobs": JOBS})),
    ],
)
def test_the_three_formats_mean_the_same(tmp_path: Path, name: str, text: str) -> None:
    found = load(tmp_path, name, text)
    assert found == LoadedFile(workflow=WORKFLOW, jobs=JOBS)
    assert len(parse_workflow(found.workflow, resolve=FakeResolver()).spec.steps) == 2
    assert parse_job(found.jobs[0]).slug == "j"


def test_a_path_may_be_text(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(YAML)
    assert load_definition(str(tmp_path / "a.yaml")).workflow == WORKFLOW


@pytest.mark.parametrize("jobs", ["", "jobs:\n", "jobs: []\n"])
def test_jobs_are_optional(tmp_path: Path, jobs: str) -> None:
    found = load(tmp_path, "a.yaml", f"slug: x\nsteps: []\n{jobs}")
    assert found == LoadedFile(workflow={"slug": "x", "steps": []})


def test_a_workflow_without_a_name_is_named_after_the_file(tmp_path: Path) -> None:
    found = load(tmp_path, "nightly.yaml", "steps: []")
    assert found.workflow["name"] == "nightly"
    assert found.warnings == ['neither name nor slug is given: named "nightly" after the file']


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "a: 1\n b: [\n",
         "a.yaml, line 2, column 3: mapping values are not allowed here"),
        ("a.yaml", "a: 1\nb: 2\na: 3\n", 'a.yaml, line 3, column 1: the key "a" stands twice'),
        ("a.yaml", "a:\n  - {b: 1, b: 2}", 'a.yaml, line 2, column 12: the key "b" stands twice'),
        ("a.yaml", "a: !!python/name:os.system",
         ("a.yaml, line 1, column 4: could not determine a constructor for the tag "
          "'tag:yaml.org,2002:python/name:os.system'")),
        ("a.yaml", "? [a]\n: 1", "a.yaml, line 1, column 3: found unhashable key"),
        ("a.yaml", "a: 2024-13-45", "a.yaml: month must be in 1..12"),
        ("a.yaml", "", "a.yaml: is empty; a definition is an object with steps"),
        ("a.yaml", "- a", "a.yaml: holds an array; a definition is an object with steps"),
        ("a.yaml", "[" * 3_000, "a.yaml: nested too deep"),
        ("a.json", '{\n "a": ,}', "a.json, line 2, column 7: Expecting value"),
        ("a.json", '{"a": 1, "a": 2}', 'a.json: the key "a" stands twice in one object'),
        ("a.json", '{"a": Infinity}', "a.json: Infinity is not JSON"),
        ("a.json", "[" * 100_000, "a.json: nested too deep"),
        ("a.json", '"x"', "a.json: holds a string; a definition is an object with steps"),
        ("a.json", b"{\n\n\xff}", "a.json, line 3: is not UTF-8 text"),
        ("a.toml", "a = \n", "a.toml: Invalid value (at line 1, column 5)"),
        ("a.toml", "a = 1\na = 2\n", "a.toml: Cannot overwrite a value (at line 2, column 6)"),
        ("a.toml", "a = " + "[" * 3_000, "a.toml: nested too deep"),
        ("a.txt", "", "a.txt: the file's name must end with one of .yaml, .yml, .json, .toml"),
        ("yaml", "", "yaml: the file's name must end with one of .yaml, .yml, .json, .toml"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_its_place(
    tmp_path: Path, name: str, text: str | bytes, message: str
) -> None:
    assert refusal(tmp_path, name, text) == message


def test_control_characters_are_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, "a.yaml", "a: \x01")
    assert "special characters are not allowed" in message
    assert "\n" not in message


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DefinitionFileError, match=r"no\.yaml: No such file or directory"):
        load_definition(tmp_path / "no.yaml")
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    with pytest.raises(DefinitionFileError, match=r"folder\.yaml: Is a directory"):
        load_definition(folder)


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(DefinitionFileError, match=f"larger than {MAX_FILE_BYTES} bytes"):
        load_definition(path)


def test_anchors_work_and_merge_keys_may_be_overridden(tmp_path: Path) -> None:
    found = load(tmp_path, "a.yaml", "name: x\na: &d {b: 1, c: 2}\nsteps:\n  - {<<: *d, b: 3}\n")
    assert found.workflow["steps"] == [{"b": 3, "c": 2}]


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(
            f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n"
            for before, name in zip("abcdefgh", "bcdefghi", strict=True)
        ),
        "a: &a [*a, *a]\n",
    ],
    ids=["laughs", "endless"],
)
def test_aliases_that_unfold_without_end_are_refused(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_DEFINITION_SIZE", 10_000)  # counting takes its time
    assert refusal(tmp_path, "a.yaml", text) == (
        "a.yaml: the definition is larger than 10000 bytes"
    )


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("jobs: x\nsteps: []", ["jobs: must be an array, not a string"]),
        ("jobs: [1, {}, a]", ["jobs[0]: must be an object, not a number",
                              "jobs[2]: must be an object, not a string"]),
    ],
)  # fmt: skip
def test_jobs_must_be_objects(tmp_path: Path, text: str, problems: list[str]) -> None:
    assert problems_of(lambda: load(tmp_path, "a.yaml", text)) == problems


def test_what_a_format_knows_and_json_does_not_is_named_by_the_check(tmp_path: Path) -> None:
    text = "name: x\nsteps:\n- {step_ref: a, job_id: j, payload: {on: 2024-01-01, 5: !!set {a}}}\n"
    found = load(tmp_path, "a.yaml", text)
    assert problems_of(lambda: parse_workflow(found.workflow, resolve=FakeResolver())) == [
        "steps[0].payload[true]: object keys must be strings, not a boolean",
        "steps[0].payload[true]: must be a JSON value, not a value of type date",
        "steps[0].payload[5]: object keys must be strings, not a number",
        "steps[0].payload[5]: must be a JSON value, not a value of type set",
    ]

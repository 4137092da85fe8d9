from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pilotage.cli.files import load_definition
from pilotage.cli.wfformat import WFFORMAT_JOB, convert, is_wfformat, make_refs
from pilotage.runtime.status import ExecutionMode
from pilotage.runtime.templates import compile_template
from pilotage.runtime.validation import ParsedWorkflow, parse_job, parse_workflow
from tests.support.definitions import FakeResolver, problems_of
from tests.support.scope import FakeScope

RECORDINGS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "wfinstances"


def task(task_id: str, *parents: str, **fields: Any) -> dict[str, Any]:
    return {"id": task_id, "name": task_id, "parents": list(parents), "children": [], **fields}


def recording(*tasks: Any, runtimes: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    workflow: dict[str, Any] = {"specification": {"tasks": list(tasks)}}
    if runtimes is not None:
        workflow["execution"] = {
            "tasks": [{"id": key, "runtimeInSeconds": value} for key, value in runtimes.items()]
        }
    return {"name": "rec", "schemaVersion": "1.5", "workflow": workflow, **fields}


def checked(document: dict[str, Any]) -> ParsedWorkflow:
    raw = convert(document).workflow
    return parse_workflow(raw, resolve=FakeResolver(jobs=(WFFORMAT_JOB,)))


def edges(found: ParsedWorkflow) -> dict[str, tuple[str, ...]]:
    return {step.step_ref: step.depends_on for step in found.spec.steps}


def test_tasks_become_steps_of_one_job() -> None:
    replay = convert(
        recording(
            task("split"),
            task("work-1", "split"),
            task("work-2", "split"),
            task("merge", "work-1", "work-2"),
            runtimes={"split": 1.5, "work-1": 2, "work-2": 0, "merge": 0.25},
            description="A recording.",
        )
    )
    assert replay.workflow == {
        "name": "rec",
        "description": "A recording.",
        "steps": [
            {"step_ref": "split", "job_id": "wfformat-task",
             "payload": {"task": "split", "runtime_secs": 1.5}},
            {"step_ref": "work-1", "job_id": "wfformat-task", "depends_on": ["split"],
             "payload": {"task": "work-1", "runtime_secs": 2.0}},
            {"step_ref": "work-2", "job_id": "wfformat-task", "depends_on": ["split"],
             "payload": {"task": "work-2", "runtime_secs": 0.0}},
            {"step_ref": "merge", "job_id": "wfformat-task", "depends_on": ["work-1", "work-2"],
             "payload": {"task": "merge", "runtime_secs": 0.25}},
        ],
    }  # fmt: skip
    assert replay.warnings == []
    (job,) = replay.jobs
    parsed = parse_job(job)
    assert (parsed.slug, parsed.spec.execution_mode) == (WFFORMAT_JOB, ExecutionMode.PYTHON)
    assert parsed.spec.timeout_secs == 86_400


def test_parents_and_children_are_united() -> None:
    found = checked(
        recording(
            task("a", children=["b", "c"]), task("b", "a"), task("c"), task("d", "c", "c", "b")
        )
    )
    assert edges(found) == {"a": (), "b": ("a",), "c": ("a",), "d": ("c", "b")}


def test_what_is_missing_takes_no_time_and_is_told() -> None:
    replay = convert(recording(task("a"), task("b"), runtimes={"a": 0, "other": 5}))
    assert [step["payload"]["runtime_secs"] for step in replay.workflow["steps"]] == [0.0, 0.0]
    assert replay.warnings == ["1 tasks have no recorded runtime and take 0 s"]
    assert convert(recording(task("a"))).warnings == [
        "1 tasks have no recorded runtime and take 0 s"
    ]


def test_a_recording_without_a_name_gets_another() -> None:
    document = recording(task("a"), name="")
    assert convert(document, fallback_name="file").workflow["name"] == "file"
    del document["name"]
    assert convert(document).workflow["name"] == "wfformat"


def test_long_texts_are_cut() -> None:
    workflow = convert(recording(task("a"), name="n" * 300, description="d" * 3_000)).workflow
    assert (len(workflow["name"]), len(workflow["description"])) == (255, 2_000)


@pytest.mark.parametrize("version", ["1.3", "1.4"])
@pytest.mark.parametrize("runtime", ["runtime", "runtimeInSeconds"])
def test_older_layouts_are_understood(version: str, runtime: str) -> None:
    document = {
        "name": "old",
        "schemaVersion": version,
        "workflow": {
            "tasks": [
                {"name": "first", "id": "ID1", runtime: 3.5, "children": ["second"]},
                {"name": "second", "id": "ID2", runtime: 1, "parents": ["first"]},
                {"name": "third", "parents": ["ID2"]},
            ]
        },
    }
    assert is_wfformat(document)
    found = checked(document)
    assert edges(found) == {"ID1": (), "ID2": ("ID1",), "third": ("ID2",)}
    assert found.spec.steps[0].payload == {"task": "ID1", "runtime_secs": 3.5}


def test_names_that_are_not_unique_do_not_stand_for_a_task() -> None:
    document = recording(task("1", name="x"), task("2", name="x"), task("3", "x"))
    assert problems_of(lambda: convert(document)) == [
        'workflow.specification.tasks[2].parents[0]: unknown task "x"'
    ]


T = "workflow.specification.tasks"


@pytest.mark.parametrize(
    ("document", "problems"),
    [
        (
            recording(task("a", "x", "y"), task("b", children=["z"])),
            [
                f'{T}[0].parents[0]: unknown task "x"',
                f'{T}[0].parents[1]: unknown task "y"',
                f'{T}[1].children[0]: unknown task "z"',
            ],
        ),
        (recording(), [f"{T}: must be an array of tasks, found none"]),
        (recording(5, {"id": 3}, {"id": ""}, {}), [
            f"{T}[0]: must be an object, not a number",
            f"{T}[1].id: is required, a string that is not empty",
            f"{T}[2].id: is required, a string that is not empty",
            f"{T}[3].id: is required, a string that is not empty",
        ]),
        (recording(task("a"), task("a")), [f'{T}[1].id: "a" is also that of {T}[0]']),
        (recording({"id": "a", "parents": "b", "children": [1]}), [
            f"{T}[0].parents: must be an array, not a string",
            f"{T}[0].children[0]: must be a string, not a number",
        ]),
        (recording(task("a"), task("b"), runtimes={"a": "5", "b": -1}), [
            ("workflow.execution.tasks[0].runtimeInSeconds: "
             "must be a number of seconds, not a string"),
            "workflow.execution.tasks[1].runtimeInSeconds: must be from 0 to 315360000, not -1",
        ]),
        (recording(task("a", runtime=10**400)), [
            (f"{T}[0].runtimeInSeconds: must be from 0 to 315360000, "
             "not a number beyond 64 bits"),
        ]),
        (recording(task("a", runtime=True)), [
            f"{T}[0].runtimeInSeconds: must be a number of seconds, not a boolean",
        ]),
        (recording(task("a", runtime=float("nan"))), [
            f"{T}[0].runtimeInSeconds: must be from 0 to 315360000, not NaN",
        ]),
        ({"schemaVersion": "1.5", "workflow": {"specification": []}},
         ["workflow.specification: must be an object, not an array"]),
        ({"schemaVersion": "1.5", "workflow": {"specification": {}}},
         [f"{T}: must be an array of tasks, found nothing"]),
        ({"schemaVersion": "1.4", "workflow": {"tasks": {}}},
         ["workflow.tasks: must be an array of tasks, found an object"]),
    ],
)  # fmt: skip
def test_everything_wrong_is_listed(document: dict[str, Any], problems: list[str]) -> None:
    assert problems_of(lambda: convert(document)) == problems


@pytest.mark.parametrize(
    "execution", [None, [], {}, {"tasks": {}}, {"tasks": [5, {"id": "a"}, {"id": ["a"]}]}]
)
def test_an_execution_that_says_nothing_is_no_problem(execution: Any) -> None:
    document = recording(task("a"))
    document["workflow"]["execution"] = execution
    assert convert(document).workflow["steps"][0]["payload"]["runtime_secs"] == 0.0


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"name": "x", "steps": []},
        {"schemaVersion": "1.5"},
        {"schemaVersion": "1.5", "workflow": "x"},
        {"schemaVersion": "1.5", "workflow": {}},
        {"workflow": {"tasks": []}},
    ],
)
def test_other_documents_are_no_recordings(document: Any) -> None:
    assert not is_wfformat(document)


def test_refs_keep_ids_that_can_be_refs_and_are_distinct() -> None:
    ids = ["a_b", "a.b", "a/b", "a b", "a_b-2", "ü", "", "_", "x" * 128, "x" * 129, "x" * 130]
    refs = make_refs(ids)
    assert refs == {
        "a_b": "a_b",
        "a.b": "a_b-3",  # a_b-2 is the id of another task
        "a/b": "a_b-4",
        "a b": "a_b-5",
        "a_b-2": "a_b-2",
        "ü": "_-2",
        "": "task",
        "_": "_",
        "x" * 128: "x" * 128,
        "x" * 129: "x" * 126 + "-2",
        "x" * 130: "x" * 126 + "-3",
    }


def test_changed_ids_are_told_and_kept_in_the_payload() -> None:
    replay = convert(recording(task("N.A"), task("N.B", "N.A"), runtimes={"N.A": 1, "N.B": 2}))
    assert [step["step_ref"] for step in replay.workflow["steps"]] == ["N_A", "N_B"]
    assert replay.workflow["steps"][1]["depends_on"] == ["N_A"]
    assert replay.workflow["steps"][1]["payload"] == {"task": "N.B", "runtime_secs": 2.0}
    assert replay.warnings == [
        '2 task ids cannot be step refs and were changed, such as "N.A" to "N_A"'
    ]


def test_an_id_that_looks_like_a_template_stays_what_it_is() -> None:
    task_id = 'a {{ payload }} "b" ü'
    found = checked(recording(task(task_id)))
    (step,) = found.spec.steps
    assert compile_template(step.payload).render(FakeScope())["task"] == task_id


def test_thousands_of_tasks_are_converted() -> None:
    tasks = [task(f"t.{i}", *(f"t.{k}" for k in range(max(0, i - 4), i))) for i in range(5_000)]
    found = checked(recording(*tasks))
    assert len(found.spec.steps) == 5_000
    assert sum(len(step.depends_on) for step in found.spec.steps) == 4 * 5_000 - 10


def test_a_file_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "recorded.json"
    path.write_text(json.dumps(recording(task("a"), name=None)))
    found = load_definition(path)
    assert found.workflow["name"] == "recorded"
    assert [job["slug"] for job in found.jobs] == [WFFORMAT_JOB]
    assert found.warnings == ["1 tasks have no recorded runtime and take 0 s"]


SIZES = {
    "1000genome-chameleon-2ch-100k-001.json": 52,
    "bacass-dirt02-001.json": 11,
    "blast-chameleon-small-001.json": 43,
    "epigenomics-chameleon-hep-1seq-100k-001.json": 41,
    "helloworld-chain-5-chameleon.json": 5,
    "helloworld-forkjoin-10-chameleon.json": 10,
    "methylseq-dirt02-001.json": 36,
    "sarek-dirt02-001.json": 26,
    "srasearch-chameleon-10a-001.json": 22,
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.skipif(
    not RECORDINGS.is_dir(), reason="the published recordings (../shared/data) are not here"
)
def test_published_recordings_become_valid_workflows(name: str) -> None:
    path = RECORDINGS / name
    loaded = load_definition(path)
    found = parse_workflow(loaded.workflow, resolve=FakeResolver(jobs=(WFFORMAT_JOB,)))
    assert len(found.spec.steps) == SIZES[name]
    document = json.loads(path.read_text())["workflow"]
    recorded = {item["id"]: item["runtimeInSeconds"] for item in document["execution"]["tasks"]}
    by_task = {step.payload["task"]: step for step in found.spec.steps if step.payload}
    for item in document["specification"]["tasks"]:
        step = by_task[item["id"]]
        assert step.payload == {"task": item["id"], "runtime_secs": recorded[item["id"]]}
        parents = {by_task[parent].step_ref for parent in item["parents"]}
        assert parents <= set(step.depends_on)

"""WfFormat (the JSON of recorded scientific workflows, schema 1.5) as a workflow that replays it.

Each task becomes a job step of one Python job, `wfformat-task`, with the payload
`{"task": id, "runtime_secs": recorded}`; parents and children become `depends_on`. The older
layout with `workflow.tasks` (1.3, 1.4) is understood too. Nothing of a task is executed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from pilotage.runtime.errors import DefinitionError
from pilotage.runtime.jsonvalues import is_array, is_object, show, type_name
from pilotage.runtime.template_syntax import REF_PATTERN

WFFORMAT_JOB: Final = "wfformat-task"

_MAX_REF_CHARS = 128
_MAX_DESCRIPTION_CHARS = 2_000
_MAX_NAME_CHARS = 255
_LONGEST_ATTEMPT_SECS = 86_400
_LONGEST_RUNTIME_SECS = 10 * 365 * 86_400
_NO_REF_CHARS = re.compile(r"[^A-Za-z0-9_-]+")


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """Input for `parse_workflow` and `parse_job`, and what the reader should know."""

    workflow: dict[str, Any]
    jobs: list[dict[str, Any]]
    warnings: list[str]


class _Task(msgspec.Struct, kw_only=True):
    id: str
    path: str
    name: str
    parents: list[tuple[str, str]]
    children: list[tuple[str, str]]
    runtime_secs: float = 0.0


def is_wfformat(document: Any) -> bool:
    """Whether the decoded JSON looks like WfFormat rather than like a workflow of ours."""
    if not is_object(document) or "schemaVersion" not in document:
        return False
    workflow = document.get("workflow")
    return is_object(workflow) and ("specification" in workflow or "tasks" in workflow)


def convert(document: Mapping[str, Any], *, fallback_name: str = "wfformat") -> Replay:
    """The workflow of a WfFormat document; raises DefinitionError that lists all problems."""
    problems: list[str] = []
    workflow = document["workflow"]
    specification = workflow.get("specification", workflow)
    path = "workflow.specification" if "specification" in workflow else "workflow"
    if not is_object(specification):
        raise DefinitionError([f"{path}: must be an object, not {type_name(specification)}"])
    tasks = _read_tasks(specification.get("tasks"), f"{path}.tasks", problems)
    without = _read_runtimes(workflow.get("execution"), tasks, problems)
    parents = _parents(tasks, problems)
    if problems:
        raise DefinitionError(problems)
    refs = make_refs([task.id for task in tasks])
    steps = [_step(task, refs, parents[task.id]) for task in tasks]
    name = document.get("name")
    result: dict[str, Any] = {
        "name": (name if isinstance(name, str) and name else fallback_name)[:_MAX_NAME_CHARS],
        "steps": steps,
    }
    description = document.get("description")
    if isinstance(description, str) and description:
        result["description"] = description[:_MAX_DESCRIPTION_CHARS]
    job = {
        "slug": WFFORMAT_JOB,
        "execution_mode": "python",
        "timeout_secs": _LONGEST_ATTEMPT_SECS,
    }
    return Replay(workflow=result, jobs=[job], warnings=_warnings(tasks, refs, without))


def make_refs(ids: Sequence[str]) -> dict[str, str]:
    """A distinct `step_ref` for each of the distinct ids. An id that can be a ref is its own."""
    refs = {task_id: task_id for task_id in ids if REF_PATTERN.fullmatch(task_id)}
    taken = set(refs)
    for task_id in ids:
        if task_id in refs:
            continue
        stem = _NO_REF_CHARS.sub("_", task_id)[:_MAX_REF_CHARS] or "task"
        ref, n = stem, 1
        while ref in taken:
            n += 1
            suffix = f"-{n}"
            ref = stem[: _MAX_REF_CHARS - len(suffix)] + suffix
        refs[task_id] = ref
        taken.add(ref)
    return refs


# --- reading --------------------------------------------------------------------------------------


def _read_tasks(raw: Any, path: str, problems: list[str]) -> list[_Task]:
    if not is_array(raw) or not raw:
        found = "nothing" if raw is None else type_name(raw) if not is_array(raw) else "none"
        raise DefinitionError([f"{path}: must be an array of tasks, found {found}"])
    tasks: list[_Task] = []
    seen: dict[str, str] = {}
    for i, item in enumerate(raw):
        here = f"{path}[{i}]"
        if not is_object(item):
            problems.append(f"{here}: must be an object, not {type_name(item)}")
            continue
        task_id = item.get("id", item.get("name"))
        if not isinstance(task_id, str) or not task_id:
            problems.append(f"{here}.id: is required, a string that is not empty")
            continue
        if task_id in seen:
            problems.append(f"{here}.id: {show(task_id)} is also that of {seen[task_id]}")
            continue
        seen[task_id] = here
        name = item.get("name")
        task = _Task(
            id=task_id,
            path=here,
            name=name if isinstance(name, str) else task_id,
            parents=_links(item.get("parents"), f"{here}.parents", problems),
            children=_links(item.get("children"), f"{here}.children", problems),
        )
        recorded = item.get("runtimeInSeconds", item.get("runtime"))
        if recorded is not None:
            task.runtime_secs = _runtime(recorded, f"{here}.runtimeInSeconds", problems)
        tasks.append(task)
    return tasks


def _links(raw: Any, path: str, problems: list[str]) -> list[tuple[str, str]]:
    """Names of other tasks, each with its path."""
    if raw is None:
        return []
    if not is_array(raw):
        problems.append(f"{path}: must be an array, not {type_name(raw)}")
        return []
    found: list[tuple[str, str]] = []
    for i, item in enumerate(raw):
        if isinstance(item, str):
            found.append((item, f"{path}[{i}]"))
        else:
            problems.append(f"{path}[{i}]: must be a string, not {type_name(item)}")
    return found


def _runtime(value: Any, path: str, problems: list[str]) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        problems.append(f"{path}: must be a number of seconds, not {type_name(value)}")
    elif not 0 <= value <= _LONGEST_RUNTIME_SECS:
        problems.append(f"{path}: must be from 0 to {_LONGEST_RUNTIME_SECS}, not {show(value)}")
    else:
        return float(value)
    return 0.0


def _read_runtimes(raw: Any, tasks: list[_Task], problems: list[str]) -> int:
    """Sets the recorded runtimes; answers how many tasks have none."""
    executed = raw.get("tasks") if is_object(raw) else None
    known = {task.id: task for task in tasks}
    timed = {task.id for task in tasks if task.runtime_secs}
    for i, item in enumerate(executed if is_array(executed) else ()):
        if not is_object(item) or "runtimeInSeconds" not in item:
            continue
        task = known.get(str(item.get("id")))
        if task is not None:
            path = f"workflow.execution.tasks[{i}].runtimeInSeconds"
            task.runtime_secs = _runtime(item["runtimeInSeconds"], path, problems)
            timed.add(task.id)
    return len(tasks) - len(timed)


def _parents(tasks: list[_Task], problems: list[str]) -> dict[str, list[str]]:
    """The parents of each task: those it names and those that name it as their child.

    Older files name tasks by `name` where that is unique.
    """
    by_name: dict[str, str] = {}
    for task in tasks:
        by_name[task.name] = "" if task.name in by_name else task.id
    known = {**by_name, **{task.id: task.id for task in tasks}}
    parents: dict[str, dict[str, None]] = {task.id: {} for task in tasks}
    for task in tasks:
        for name, path in task.parents:
            if known.get(name):
                parents[task.id][known[name]] = None
            else:
                problems.append(f"{path}: unknown task {show(name)}")
        for name, path in task.children:
            if known.get(name):
                parents[known[name]][task.id] = None
            else:
                problems.append(f"{path}: unknown task {show(name)}")
    return {task_id: list(found) for task_id, found in parents.items()}


# --- writing --------------------------------------------------------------------------------------


def _step(task: _Task, refs: Mapping[str, str], parents: Sequence[str]) -> dict[str, Any]:
    step: dict[str, Any] = {
        "step_ref": refs[task.id],
        "job_id": WFFORMAT_JOB,
        "payload": {"task": _literal(task.id), "runtime_secs": task.runtime_secs},
    }
    if parents:
        step["depends_on"] = [refs[parent] for parent in parents]
    return step


def _literal(text: str) -> str:
    """The text as it stands in a payload, where two braces would begin a template."""
    return f"{{{{ {json.dumps(text)} }}}}" if "{{" in text else text


def _warnings(tasks: list[_Task], refs: Mapping[str, str], without_runtime: int) -> list[str]:
    warnings: list[str] = []
    renamed = [(task.id, refs[task.id]) for task in tasks if refs[task.id] != task.id]
    if renamed:
        old, new = renamed[0]
        warnings.append(
            f"{len(renamed)} task ids cannot be step refs and were changed, "
            f"such as {show(old)} to {show(new)}"
        )
    if without_runtime:
        warnings.append(f"{without_runtime} tasks have no recorded runtime and take 0 s")
    return warnings

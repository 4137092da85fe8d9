"""Definitions in files: YAML, JSON or TOML, or a WfFormat recording in JSON.

A file is a workflow as the REST API takes it, with an optional `jobs` array beside its fields.
`load_definition` only decodes; `pilotage.runtime.validation` checks what the definition says.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec
import yaml

from pilotage.cli.wfformat import convert, is_wfformat
from pilotage.runtime.errors import DefinitionError, PilotageError
from pilotage.runtime.jsonvalues import is_array, is_object, show, type_name
from pilotage.runtime.transforms import weight

MAX_FILE_BYTES: Final = 64 * 1024 * 1024
"""Recordings carry much that is not needed; a definition is far smaller."""

MAX_DEFINITION_SIZE: Final = 8 * 1024 * 1024
"""As the REST API; a YAML file of a few lines can unfold to gigabytes by its aliases."""


class DefinitionFileError(PilotageError):
    """The file cannot be read or is not what its ending says; the message names file and line."""


class LoadedFile(msgspec.Struct, frozen=True, kw_only=True):
    """Decoded, unchecked: input for `parse_workflow` and `parse_job`."""

    workflow: dict[str, Any]
    jobs: list[dict[str, Any]] = []
    warnings: list[str] = []


def load_definition(path: str | Path) -> LoadedFile:
    """The definition in the file.

    Raises:
        DefinitionFileError: the file cannot be read, decoded, or is no definition at all.
        DefinitionError: a WfFormat file with problems, all of them listed.
    """
    path = Path(path)
    decode = _DECODERS.get(path.suffix.lower())
    if decode is None:
        raise DefinitionFileError(
            f"{path}: the file's name must end with one of {', '.join(_DECODERS)}"
        )
    document = decode(path, _read(path))
    if is_wfformat(document):
        replay = convert(document, fallback_name=path.stem)
        return LoadedFile(workflow=replay.workflow, jobs=replay.jobs, warnings=replay.warnings)
    return _split(path, document)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise DefinitionFileError(f"{path}: {error.strerror or error}") from None
    if len(data) > MAX_FILE_BYTES:
        raise DefinitionFileError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DefinitionFileError(f"{path}, line {line}: is not UTF-8 text") from None


def _split(path: Path, document: Any) -> LoadedFile:
    if not is_object(document):
        found = "is empty" if document is None else f"holds {type_name(document)}"
        raise DefinitionFileError(f"{path}: {found}; a definition is an object with steps")
    if weight((document,), MAX_DEFINITION_SIZE) > MAX_DEFINITION_SIZE:
        raise DefinitionFileError(
            f"{path}: the definition is larger than {MAX_DEFINITION_SIZE} bytes"
        )
    workflow = dict(document)
    jobs: Any = workflow.pop("jobs", None)
    if jobs is None:
        jobs = []
    if not is_array(jobs):
        raise DefinitionError([f"jobs: must be an array, not {type_name(jobs)}"])
    problems = [
        f"jobs[{i}]: must be an object, not {type_name(job)}"
        for i, job in enumerate(jobs)
        if not is_object(job)
    ]
    if problems:
        raise DefinitionError(problems)
    warnings: list[str] = []
    if workflow.get("name") is None and workflow.get("slug") is None:
        workflow["name"] = path.stem
        warnings.append(f"neither name nor slug is given: named {show(path.stem)} after the file")
    return LoadedFile(workflow=workflow, jobs=list(jobs), warnings=warnings)


# --- formats --------------------------------------------------------------------------------------


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {show(key)} stands twice in one object")
        found[key] = value
    return found


def _decode_json(path: Path, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_distinct, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise DefinitionFileError(
            f"{path}, line {error.lineno}, column {error.colno}: {error.msg}"
        ) from None
    except ValueError as error:
        raise DefinitionFileError(f"{path}: {error}") from None
    except RecursionError:
        raise DefinitionFileError(f"{path}: nested too deep") from None


def _decode_toml(path: Path, text: str) -> Any:
    try:
        return tomllib.loads(text)
    except ValueError as error:  # its message says line and column
        raise DefinitionFileError(f"{path}: {error}") from None
    except RecursionError:
        raise DefinitionFileError(f"{path}: nested too deep") from None


class _Loader(yaml.SafeLoader):
    """Makes plain values only, and refuses a mapping that has a key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - PyYAML's signature
        seen: set[tuple[str, object]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # no string: refused by what checks the definition
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {show(key.value)} stands twice", key.start_mark
                )
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep=deep)


def _decode_yaml(path: Path, text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise DefinitionFileError(f"{path}{where}: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise DefinitionFileError(f"{path}: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise DefinitionFileError(f"{path}: nested too deep") from None


_DECODERS: dict[str, Callable[[Path, str], Any]] = {
    ".yaml": _decode_yaml,
    ".yml": _decode_yaml,
    ".json": _decode_json,
    ".toml": _decode_toml,
}

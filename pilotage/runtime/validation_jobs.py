"""Jobs: untrusted objects to `ParsedJob`, or all their problems.

Bounds. Identity as for workflows (see `validation`) · `endpoint_url` http or https with a host, at
most 2,048 characters · `max_attempts` 1–100 · `timeout_secs` and `heartbeat_timeout_secs`
1 ms–24 h · retry delays 0 s–30 d · `max_concurrency` 0 (none)–1,000,000 · `signing_secret` 1–1,024.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import msgspec

from pilotage.runtime.definition import JobSpec
from pilotage.runtime.errors import DefinitionError
from pilotage.runtime.jsonvalues import type_name
from pilotage.runtime.status import Backoff, ExecutionMode
from pilotage.runtime.validation_fields import (
    BAD,
    FieldTable,
    Problems,
    as_object,
    choice,
    integer,
    read_fields,
    reader,
    seconds,
    text,
)
from pilotage.runtime.validation_identity import (
    IDENTITY_READERS,
    SERVER_SET,
    complete_identity,
    keep_project,
)
from pilotage.runtime.validation_steps import (
    MAX_ATTEMPT_SECS,
    MAX_ATTEMPTS,
    MAX_PARKED_SECS,
    MIN_SECS,
)

MAX_URL_CHARS: Final = 2_048


class ParsedJob(msgspec.Struct, frozen=True, kw_only=True):
    """A valid job as its author wants it; ids and times are the server's."""

    name: str
    slug: str
    spec: JobSpec
    tags: dict[str, str] = {}
    enabled: bool = True
    project_id: str | None = None


class JobLike(Protocol):
    """A stored job that a patch is laid over."""

    @property
    def name(self) -> str: ...
    @property
    def slug(self) -> str: ...
    @property
    def tags(self) -> Mapping[str, str]: ...
    @property
    def enabled(self) -> bool: ...
    @property
    def project_id(self) -> str | None: ...
    @property
    def spec(self) -> JobSpec: ...


_read_url_text = text(most=MAX_URL_CHARS)


@reader(**_read_url_text.schema, format="uri")
def _endpoint_url(value: Any, path: str, problems: Problems) -> Any:
    if _read_url_text(value, path, problems) is BAD:
        return BAD
    url: str = value
    if not url.isprintable() or " " in url:
        problems.add(path, "must not contain spaces or control characters")
        return BAD
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        problems.add(path, f"is no URL: {error}")
        return BAD
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        problems.add(path, "must be a URL like https://host/path (http or https, with a host)")
        return BAD
    return url


_choose_mode = choice(ExecutionMode)


@reader(type="string", enum=[str(m) for m in ExecutionMode if m is not ExecutionMode.QUEUE])
def _execution_mode(value: Any, path: str, problems: Problems) -> Any:
    mode = _choose_mode(value, path, problems)
    if mode is ExecutionMode.QUEUE:
        problems.add(path, 'queue jobs are not supported yet; use "http" or "python"')
    return mode


_attempt_secs = seconds(least=MIN_SECS, most=MAX_ATTEMPT_SECS)
_retry_delay = seconds(least=0, most=MAX_PARKED_SECS)

_SPEC_READERS = {
    "endpoint_url": _endpoint_url,
    "execution_mode": _execution_mode,
    "max_attempts": integer(least=1, most=MAX_ATTEMPTS),
    "timeout_secs": _attempt_secs,
    "retry_backoff": choice(Backoff),
    "retry_initial_delay_secs": _retry_delay,
    "retry_max_delay_secs": _retry_delay,
    "max_concurrency": integer(least=0, most=1_000_000),
    "signing_secret": text(most=1_024),
    "heartbeat_timeout_secs": _attempt_secs,
}

JOB_FIELDS: Final = FieldTable(
    readers={
        **{key: reader for key, reader in IDENTITY_READERS.items() if key != "description"},
        **_SPEC_READERS,
    },
    server_set=SERVER_SET,
    later={"webhook": "webhooks are not supported yet", "queue": "queues are not supported yet"},
)


def parse_job(raw: Mapping[str, Any]) -> ParsedJob:
    """The job, with defaults filled in; raises DefinitionError with all problems."""
    problems = Problems()
    given = as_object(raw, "job", problems)
    if given is None:
        problems.refuse()
    fields = read_fields(given, "", JOB_FIELDS, problems)
    complete_identity(fields, given, problems)
    mode = fields.get("execution_mode", ExecutionMode.HTTP)
    if "execution_mode" in fields or given.get("execution_mode") is None:
        _check_endpoint(mode, given, problems)
    problems.raise_if_any()
    spec = JobSpec(**{key: fields.pop(key) for key in _SPEC_READERS if key in fields})
    return ParsedJob(spec=spec, **fields)


def _check_endpoint(mode: ExecutionMode, given: Mapping[Any, Any], problems: Problems) -> None:
    has_url = given.get("endpoint_url") is not None
    if mode is ExecutionMode.HTTP and not has_url:
        problems.add(
            "endpoint_url", 'is required for an http job (for a function: execution_mode "python")'
        )
    if mode is ExecutionMode.PYTHON and has_url:
        problems.add("endpoint_url", "belongs to http jobs, this one is python")


def parse_job_patch(raw: Mapping[str, Any], current: JobLike) -> ParsedJob:
    """The job with the given fields replaced; null resets a field to its default."""
    if not isinstance(raw, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DefinitionError([f"job: must be an object, not {type_name(raw)}"])
    stored: dict[str, Any] = {
        "name": current.name,
        "slug": current.slug,
        "tags": dict(current.tags),
        "enabled": current.enabled,
        "project_id": current.project_id,
        **msgspec.structs.asdict(current.spec),
    }
    return parse_job({**stored, **keep_project(raw, current.project_id)})

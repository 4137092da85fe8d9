from __future__ import annotations

from typing import Any

import pytest

from pilotage.runtime.definition import JobSpec
from pilotage.runtime.status import Backoff, ExecutionMode
from pilotage.runtime.validation import ParsedJob, parse_job, parse_job_patch
from tests.support.definitions import problems_of

URL = "https://jobs.example.com/charge"
HTTP: dict[str, Any] = {"name": "Charge", "endpoint_url": URL}


def problems(raw: Any) -> list[str]:
    return problems_of(lambda: parse_job(raw))


def test_a_minimal_job_gets_the_defaults() -> None:
    assert parse_job(HTTP) == ParsedJob(
        name="Charge", slug="charge", spec=JobSpec(endpoint_url=URL)
    )
    assert parse_job({"slug": "f", "execution_mode": "python"}) == ParsedJob(
        name="f", slug="f", spec=JobSpec(execution_mode=ExecutionMode.PYTHON)
    )


def test_every_field_of_a_job_is_taken() -> None:
    found = parse_job(
        {
            "name": "Charge",
            "slug": "c",
            "project_id": "p",
            "tags": {"a": "b"},
            "enabled": False,
            "endpoint_url": URL,
            "execution_mode": "http",
            "max_attempts": 5,
            "timeout_secs": 0.5,
            "retry_backoff": "fixed",
            "retry_initial_delay_secs": 0,
            "retry_max_delay_secs": 10,
            "max_concurrency": 3,
            "signing_secret": "s" * 32,
            "heartbeat_timeout_secs": 20,
        }
    )
    assert found == ParsedJob(
        name="Charge",
        slug="c",
        project_id="p",
        tags={"a": "b"},
        enabled=False,
        spec=JobSpec(
            endpoint_url=URL,
            execution_mode=ExecutionMode.HTTP,
            max_attempts=5,
            timeout_secs=0.5,
            retry_backoff=Backoff.FIXED,
            retry_initial_delay_secs=0.0,
            retry_max_delay_secs=10.0,
            max_concurrency=3,
            signing_secret="s" * 32,
            heartbeat_timeout_secs=20.0,
        ),
    )


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost",
        "http://127.0.0.1:8080/x?y=z#f",
        "https://[::1]:443/",
        "HTTPS://EXAMPLE.COM",
        "https://user:secret@example.com/",
        "http://bücher.example/",
        "https://h/" + "x" * 2038,
    ],
)
def test_urls_that_are_taken(url: str) -> None:
    assert parse_job({"slug": "a", "endpoint_url": url}).spec.endpoint_url == url


NO_URL = "must be a URL like https://host/path (http or https, with a host)"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "must not be empty"),
        (5, "must be a string, not a number"),
        ("example.com", NO_URL),
        ("ftp://example.com", NO_URL),
        ("file:///etc/passwd", NO_URL),
        ("http://", NO_URL),
        ("http:///path", NO_URL),
        ("https://:80/", NO_URL),
        ("http://h:0/", NO_URL),
        ("//example.com/", NO_URL),
        ("http://h:99999/", "is no URL: Port out of range 0-65535"),
        ("http://h:x/", "is no URL: Port could not be cast to integer value as 'x'"),
        ("http://[::1/", "is no URL: Invalid IPv6 URL"),
        ("http://a b/", "must not contain spaces or control characters"),
        ("http://a/\r\nHost: x", "must not contain spaces or control characters"),
        ("http://a/\0", "must not contain NUL characters"),
        ("https://h/" + "x" * 2039, "must be at most 2048 characters long, not 2049"),
    ],
)
def test_urls_that_are_refused(url: Any, problem: str) -> None:
    assert problems({"slug": "a", "endpoint_url": url}) == [f"endpoint_url: {problem}"]


CASES: list[tuple[dict[str, Any], list[str]]] = [
    (
        {"slug": "a"},
        ['endpoint_url: is required for an http job (for a function: execution_mode "python")'],
    ),
    (
        {"slug": "a", "execution_mode": "python", "endpoint_url": URL},
        ["endpoint_url: belongs to http jobs, this one is python"],
    ),
    (
        {"slug": "a", "execution_mode": "queue"},
        ['execution_mode: queue jobs are not supported yet; use "http" or "python"'],
    ),
    (
        {"slug": "a", "execution_mode": "ssh"},
        ['execution_mode: must be one of http, python, queue, not "ssh"'],
    ),
    ({}, ["name: is required (or a slug)",
          'endpoint_url: is required for an http job (for a function: execution_mode "python")']),
    ({**HTTP, "max_attempts": 101}, ["max_attempts: must be from 1 to 100, not 101"]),
    ({**HTTP, "timeout_secs": 86_401},
     ["timeout_secs: must be from 0.001 to 86,400 seconds, not 86401"]),
    ({**HTTP, "timeout_secs": 0}, ["timeout_secs: must be from 0.001 to 86,400 seconds, not 0"]),
    ({**HTTP, "max_concurrency": -1}, ["max_concurrency: must be from 0 to 1000000, not -1"]),
    ({**HTTP, "signing_secret": ""}, ["signing_secret: must not be empty"]),
    ({**HTTP, "signing_secret": "s" * 1025},
     ["signing_secret: must be at most 1024 characters long, not 1025"]),
    ({**HTTP, "heartbeat_timeout_secs": 0},
     ["heartbeat_timeout_secs: must be from 0.001 to 86,400 seconds, not 0"]),
    ({**HTTP, "description": "x"}, ["description: unknown field"]),
    ({**HTTP, "timeout": 5}, ['timeout: unknown field (did you mean "timeout_secs"?)']),
    ({**HTTP, "webhook_url": "x"}, ["webhook_url: webhooks are not supported yet"]),
    ({**HTTP, "queue_name": "x"}, ["queue_name: queues are not supported yet"]),
    ({**HTTP, "id": "x", "created_at": "x"},
     ["id: is set by the server and cannot be given",
      "created_at: is set by the server and cannot be given"]),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "expected"), CASES)
def test_what_is_wrong_with_a_job_is_listed(raw: dict[str, Any], expected: list[str]) -> None:
    assert problems(raw) == expected


@pytest.mark.parametrize("raw", [None, [], "x", 5])
def test_a_job_must_be_an_object(raw: Any) -> None:
    (found,) = problems(raw)
    assert found.startswith("job: must be an object, not")
    (found,) = problems_of(lambda: parse_job_patch(raw, parse_job(HTTP)))
    assert found.startswith("job: must be an object, not")


def test_null_counts_as_absent() -> None:
    assert parse_job({**HTTP, "tags": None, "timeout_secs": None, "slug": None}) == parse_job(HTTP)


# --- patches --------------------------------------------------------------------------------------

CURRENT = parse_job(
    {**HTTP, "project_id": "p", "tags": {"a": "b"}, "max_attempts": 5, "signing_secret": "old"}
)


def test_an_empty_patch_changes_nothing() -> None:
    assert parse_job_patch({}, CURRENT) == CURRENT


def test_given_fields_replace_and_null_resets() -> None:
    found = parse_job_patch(
        {"max_attempts": None, "tags": None, "enabled": False, "signing_secret": "new"}, CURRENT
    )
    assert found.spec == JobSpec(endpoint_url=URL, signing_secret="new")
    assert (found.name, found.tags, found.enabled) == ("Charge", {}, False)


def test_a_job_can_become_a_function() -> None:
    found = parse_job_patch({"execution_mode": "python", "endpoint_url": None}, CURRENT)
    assert found.spec.execution_mode is ExecutionMode.PYTHON
    assert found.spec.endpoint_url is None


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            {"execution_mode": "python"},
            ["endpoint_url: belongs to http jobs, this one is python"],
        ),
        ({"nope": 1, "max_attempts": 0}, ["nope: unknown field",
                                          "max_attempts: must be from 1 to 100, not 0"]),
        ({"project_id": "q"}, ['project_id: cannot be changed, it is "p"']),
    ],
)  # fmt: skip
def test_a_bad_patch_is_refused_with_all_problems(raw: dict[str, Any], expected: list[str]) -> None:
    assert sorted(problems_of(lambda: parse_job_patch(raw, CURRENT))) == sorted(expected)

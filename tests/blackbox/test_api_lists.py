"""Lists: array or page, limits, cursors that never skip or repeat, filters that combine."""

from __future__ import annotations

import base64
import hashlib
from itertools import product
from typing import Any

import httpx
import msgspec
import pytest

from tests.blackbox.api import Api, Json, approval, job
from tests.blackbox.rest import JSON, PAGE, UNKNOWN, details, member, refused, walk

RUNS = "/v1/workflow-runs"


def ids(rows: list[Json]) -> list[str]:
    return [row["id"] for row in rows]


def some_runs(api: Api, count: int) -> list[str]:
    """Ids, newest first. Every other one waits, tags alternate."""
    done, waits = api.workflow(job("a")), api.workflow(approval("b"))
    made = [
        api.trigger(waits if i % 2 else done, tags={"n": str(i % 3), "odd": str(i % 2)})
        for i in range(count)
    ]
    for run_id in made[::2]:
        api.until(run_id, "completed")
    return made[::-1]


def test_a_list_is_an_array_with_link_and_cursor_and_a_page_where_asked(api: Api) -> None:
    made = some_runs(api, 4)
    url = f"{RUNS}?project_id={api.project}"
    first = api.request("GET", f"{url}&limit=3")
    assert ids(first.json()) == made[:3]
    cursor = first.headers["x-next-cursor"]
    assert first.links["next"]["url"].endswith(cursor)
    rest = api.request("GET", first.links["next"]["url"].removeprefix(api.server.url))
    assert ids(rest.json()["data"]) == made[3:]
    assert rest.json()["has_more"] is False
    assert "link" not in rest.headers
    assert set(api.get(f"{url}&limit=3&cursor=")) == {"data", "has_more", "next_cursor"}
    last = api.request("GET", url)
    assert isinstance(last.json(), list)
    assert "x-next-cursor" not in last.headers


@pytest.mark.parametrize(
    ("accept", "as_page"),
    [
        (PAGE, True),
        (f"{JSON};q=0.5, {PAGE};q=0.9", True),
        (f"{JSON}, {PAGE};q=0", False),
        (f"{JSON}, {PAGE}; q=0.00", False),
        (JSON, False),
        ("*/*", False),
        ("application/*", False),
    ],
)
def test_accept_chooses_the_form(api: Api, accept: str, as_page: bool) -> None:
    answer = api.request("GET", f"{RUNS}?project_id={api.project}", headers={"Accept": accept})
    assert isinstance(answer.json(), dict) == as_page
    assert answer.headers["content-type"] == (PAGE if as_page else JSON)


def test_who_names_no_project_gets_a_page_and_an_admin_must_name_one(api: Api) -> None:
    project = member(api)
    for path in (RUNS, "/v1/workflows", "/v1/jobs"):
        assert set(project.get(path)) == {"data", "has_more"}
        assert project.get(f"{path}?project_id={api.project}") == []
        assert "project_id" in details(api.request("GET", path))[0]
        headers = {"X-Project-Id": api.project}
        assert api.request("GET", path, headers=headers).json() == {"data": [], "has_more": False}
        refused(project.request("GET", f"{path}?project_id=elsewhere"), 403)
        refused(project.request("GET", path, headers={"X-Project-Id": "elsewhere"}), 403)
    project.close()


@pytest.mark.parametrize("limit", ["0", "-1", "abc", "", "1.5", "1e2", "0x10", "%00", "%2B5"])
def test_a_limit_that_is_no_positive_number_is_422(api: Api, limit: str) -> None:
    run_id = api.start(approval("a"))
    base = f"project_id={api.project}&limit={limit}"
    for path in (RUNS, "/v1/workflows", "/v1/jobs", f"{RUNS}/{run_id}/steps"):
        assert "limit" in details(api.request("GET", f"{path}?{base}"))[0]


def test_the_limit_is_50_and_at_most_100(api: Api) -> None:
    workflow = api.workflow(approval("a"))
    for _ in range(103):
        api.trigger(workflow)
    url = f"{RUNS}?project_id={api.project}"
    assert len(api.get(url)) == 50
    for limit in (100, 101, 10**30):
        assert len(api.get(f"{url}&limit={limit}")) == 100


def test_cursors_of_strangers_are_400(api: Api) -> None:
    some_runs(api, 3)
    url = f"{RUNS}?project_id={api.project}"
    cursor: str = api.get(f"{url}&limit=1&cursor=")["next_cursor"]
    for wrong in ("x", "!!!", "a" * 5_000, "%00", "%ff", "null", cursor[:-1], cursor + "A"):
        refused(api.request("GET", f"{url}&cursor={wrong}"), 400)
    refused(api.request("GET", f"{url}&status=completed&cursor={cursor}"), 400)
    refused(api.request("GET", f"{RUNS}?project_id=other&cursor={cursor}"), 400)
    refused(api.request("GET", f"/v1/jobs?project_id={api.project}&cursor={cursor}"), 400)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"\x91\x01", *map(msgspec.msgpack.encode, [[1, 2], [2**63, "x"], [-1, "x"]])],
)
def test_rubbish_under_a_good_seal_is_400(api: Api, data: bytes) -> None:
    """The seal is no secret: anybody can compute it."""
    run_id = api.start(approval("a"))
    project = [("project_id", api.project)]
    for path, owner, query in (
        (RUNS, api.project, project),
        ("/v1/jobs", api.project, project),
        (f"{RUNS}/{run_id}/events", run_id, []),
        (f"{RUNS}/{run_id}/steps", run_id, []),
    ):
        context = repr((path, owner, query)).encode()
        seal = hashlib.blake2b(context + data, digest_size=8).digest()
        cursor = base64.urlsafe_b64encode(seal + data).decode().rstrip("=")
        named = f"project_id={api.project}&" if query else ""
        refused(api.request("GET", f"{path}?{named}cursor={cursor}"), 400)


def test_a_walk_neither_skips_nor_repeats_while_runs_are_added(api: Api) -> None:
    made = some_runs(api, 17)
    workflow = api.workflow(approval("a"))
    for query, wanted in (("", made), ("&status=running", made[1::2])):
        seen: list[str] = []
        for page in walk(api, f"{RUNS}?project_id={api.project}{query}", 4):
            seen += ids(page)
            api.trigger(workflow)
        assert [run_id for run_id in seen if run_id in made] == wanted
        assert len(seen) == len(set(seen))


def test_filters_combine(api: Api) -> None:
    made = some_runs(api, 12)
    rows = {run_id: api.run(run_id) for run_id in made}
    middle: str = rows[made[6]]["created_at"]
    workflows = {row["workflow_id"] for row in rows.values()}

    def fits(row: Json, query: dict[str, Any]) -> bool:
        tags = [tag.split(":") for tag in query.get("tag", ())]
        return (
            query.get("status") in {None, row["status"]}
            and query.get("workflow_id") in {None, row["workflow_id"]}
            and all(row["tags"].get(key) == value for key, value in tags)
            and (query.get("created_after") is None or row["created_at"] > middle)
            and (query.get("created_before") is None or row["created_at"] < middle)
        )

    options: list[list[tuple[str, Any]]] = [
        [("", None), ("status", "running"), ("status", "completed"), ("status", "failed")],
        [("", None), *(("workflow_id", w) for w in workflows), ("workflow_id", UNKNOWN)],
        [("", None), ("tag", ["n:1"]), ("tag", ["n:2", "odd:0"]), ("tag", ["none:x"])],
        [("", None), ("created_after", middle)],
        [("", None), ("created_before", middle)],
    ]
    for chosen in product(*options):
        query = {name: value for name, value in chosen if name}
        text = f"&{httpx.QueryParams(query)}"
        seen: list[str] = []
        for page in walk(api, f"{RUNS}?project_id={api.project}{text}", 5):
            seen += ids(page)
        assert seen == [run_id for run_id in made if fits(rows[run_id], query)], query


@pytest.mark.parametrize(
    "query",
    [
        "status=zz",
        "status=",
        "status=RUNNING",
        "tag=novalue",
        "tag=",
        "workflow_id=",
        "created_after=yesterday",
        "created_before=2020-13-01T00:00:00Z",
        "created_after=2020-01-01",
        "created_before=",
        "project_id=",
        "project_id=a%20b",
        "project_id=*",
        "status=%00",
    ],
)
def test_a_filter_that_means_nothing_is_422(api: Api, query: str) -> None:
    details(api.request("GET", f"{RUNS}?project_id={api.project}&{query}"))


def test_too_many_parameters_are_told_and_not_dropped(api: Api) -> None:
    many = "&".join(f"x{i}=1" for i in range(300))
    url = f"{RUNS}?project_id={api.project}&status=running&{many}"
    assert details(api.request("GET", url)) == ["query: at most 200 parameters"]


def test_the_list_of_steps_is_whole_unless_a_page_is_asked_for(api: Api) -> None:
    refs = [f"s{i:03}" for i in range(120)]
    run_id = api.start(*(approval(ref) for ref in refs))
    path = f"{RUNS}/{run_id}/steps"
    whole = api.request("GET", path)
    assert [step["step_ref"] for step in whole.json()] == refs
    assert "link" not in whole.headers
    some = api.request("GET", f"{path}?limit=10")
    assert [step["step_ref"] for step in some.json()] == refs[:10]
    assert some.links["next"]["url"].endswith(some.headers["x-next-cursor"])
    walked = [step["step_ref"] for page in walk(api, path, 33) for step in page]
    assert walked == refs
    assert len(api.request("GET", path, headers={"Accept": PAGE}).json()["data"]) == 50


def test_lists_of_our_own_are_always_pages(api: Api) -> None:
    run_id = api.start(approval("a"))
    keys = f"/v1/api-keys?project_id={api.project}"
    for path in (f"{RUNS}/{run_id}/events", keys, "/v1/quarantine"):
        assert set(api.get(path)) <= {"data", "has_more", "next_cursor"}
    seen = [item["seq"] for page in walk(api, f"{RUNS}/{run_id}/events", 2) for item in page]
    assert seen == list(range(1, len(seen) + 1))
    after = api.get(f"{RUNS}/{run_id}/events?after=1&limit=1")["data"]
    assert [item["seq"] for item in after] == [2]
    for wrong in ("x", "-1", ""):
        details(api.request("GET", f"{RUNS}/{run_id}/events?after={wrong}"))


def test_a_slug_in_a_list_takes_its_project_from_the_query(api: Api) -> None:
    workflow: Json = api.get(f"/v1/workflows/{api.workflow(job('a'))}")
    for what in ("runs", "versions"):
        path = f"/v1/workflows/{workflow['slug']}/{what}"
        details(api.request("GET", path))
        assert api.request("GET", f"{path}?project_id={api.project}").status_code == 200

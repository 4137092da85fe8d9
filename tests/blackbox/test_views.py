"""What an operator sees: explain, history, graph, timeline, compare, lists (api.md)."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.blackbox.api import Api, Json, approval, event, job, sleep
from tests.blackbox.jobserver import JobServer, ok, status
from tests.blackbox.stories import run_in

Gates = Callable[[], threading.Event]


def test_explain_has_one_line_for_each_open_step(api: Api, jobs: JobServer) -> None:
    bad = api.job(jobs.endpoint(status(500)), max_attempts=2, retry_initial_delay_secs=600)
    run_id = api.start(
        job("done"),
        approval("a", approvers=["ann"]),
        event("e", "key-{{ payload.n }}"),
        sleep("s", 600),
        job("r", bad),
        job("d", after=["a", "done"]),
        payload={"n": 3},
    )
    api.until_step(run_id, "r", "waiting/retry")
    lines = api.explain(run_id)
    assert list(lines) == ["a", "e", "s", "r", "d"]
    for line in lines.values():
        assert {"step_ref", "status", "waiting_for", "reason", "since"} <= line.keys()
    assert "ann" in lines["a"]["reason"]
    assert "key-3" in lines["e"]["reason"]
    assert "a" in lines["d"]["reason"]
    assert "done" not in lines["d"]["reason"]
    assert {ref for ref, line in lines.items() if "until" in line} == {"e", "s", "r"}


def test_explain_of_held_back_steps(api: Api, jobs: JobServer, gate: Gates) -> None:
    slow = api.job(jobs.endpoint(ok(1, gate=gate())))
    run_id = api.start(
        job("a", slow, concurrency_key="k"),
        job("b", concurrency_key="k"),
    )
    lines = api.explain(run_id)
    assert lines["b"]["waiting_for"] == "concurrency_key"
    assert "k" in lines["b"]["reason"]
    queue = api.workflow(approval("a"), max_concurrent_runs=1)
    api.trigger(queue)
    assert api.explain(api.trigger(queue))["a"]["waiting_for"] == "run_queue"


def test_explain_of_an_ended_run_is_empty(api: Api) -> None:
    answer: Json = api.get(f"/v1/workflow-runs/{run_in(api, 'failed')}/explain")
    assert answer["steps"] == []
    assert answer["status"] == "failed"


def test_history_tells_every_transition_with_actor_and_reason(api: Api) -> None:
    run_id = run_in(api, "running")
    api.act(run_id, "pause")
    api.act(run_id, "resume")
    api.on(run_id, "a", "skip", {"reason": "known good"})
    api.until(run_id, "completed")
    api.on(run_id, "b", "replay-subtree", expect=200)
    api.until(run_id, "completed")
    items = api.history(run_id)
    assert [item["seq"] for item in items] == list(range(1, len(items) + 1))
    assert all({"seq", "at", "type", "actor"} <= item.keys() for item in items)
    assert [item["at"] for item in items] == sorted(item["at"] for item in items)
    types = [item["type"] for item in items]
    for expected in ("run_created", "run_started", "run_paused", "run_resumed", "run_ended"):
        assert expected in types, types
    assert [i["data"]["status"] for i in items if i["type"] == "run_ended"] == ["completed"] * 2
    [skipped] = [item for item in items if item["type"] == "step_skipped"]
    assert (skipped["reason"], skipped["actor"], skipped["step_ref"]) == (
        "known good",
        "admin",
        "a",
    )


def test_history_pages(api: Api) -> None:
    run_id = run_in(api, "completed")
    items = api.history(run_id)
    page: Json = api.get(f"/v1/workflow-runs/{run_id}/events?after={items[2]['seq']}&limit=1")
    assert page["data"] == [items[3]]
    assert page["has_more"] is True
    page = api.get(f"/v1/workflow-runs/{run_id}/events?limit=2")
    path = f"/v1/workflow-runs/{run_id}/events?limit=2&cursor={page['next_cursor']}"
    assert api.get(path)["data"] == items[2:4]
    last: Json = api.get(f"/v1/workflow-runs/{run_id}/events?after={items[-1]['seq']}")
    assert (last["data"], last["has_more"]) == ([], False)


def test_graph_has_nodes_edges_roots_runnable_and_critical_path(api: Api) -> None:
    run_id = api.start(
        job("a"), approval("b", "a"), job("c", after="b"), job("d", after=["a", "c"])
    )
    api.until_step(run_id, "b", "waiting/approval")
    graph: Json = api.get(f"/v1/workflow-runs/{run_id}/graph")
    nodes = {node["step_ref"]: node for node in graph["nodes"]}
    assert list(nodes) == ["a", "b", "c", "d"]
    assert nodes["b"]["type"] == "approval"
    assert nodes["d"]["depends_on"] == ["a", "c"]
    assert {(edge["from"], edge["to"]) for edge in graph["edges"]} == {
        ("a", "b"),
        ("b", "c"),
        ("a", "d"),
        ("c", "d"),
    }
    assert graph["roots"] == ["a"]
    api.on(run_id, "b", "approve")
    api.until(run_id, "completed")
    ended: Json = api.get(f"/v1/workflow-runs/{run_id}/graph")
    assert ended["critical_path"] == ["a", "b", "c", "d"]


@pytest.mark.xfail(strict=True, reason="the drawn forms of the graph are not there yet")
def test_graph_is_drawn_in_three_forms(api: Api) -> None:
    run_id = run_in(api, "completed")
    for form in ("svg", "mermaid", "dot"):
        response = api.request("GET", f"/v1/workflow-runs/{run_id}/graph?format={form}")
        assert response.status_code == 200
        assert response.text
    assert api.request("GET", f"/v1/workflow-runs/{run_id}/graph?format=x").status_code == 422


def test_timeline_tells_how_long_each_step_took_and_waited(api: Api) -> None:
    run_id = api.start(sleep("s", 0.2), job("b", after="s"), job("side"))
    api.until(run_id, "completed")
    timeline: Json = api.get(f"/v1/workflow-runs/{run_id}/timeline")
    assert timeline["workflow_run_id"] == run_id
    assert timeline["total_ms"] >= 199
    lines = {line["step_ref"]: line for line in timeline["steps"]}
    assert lines["s"]["duration_ms"] >= 199
    assert lines["s"]["on_critical_path"] is True
    assert lines["side"]["on_critical_path"] is False
    assert all(line["step_run_id"] for line in lines.values())


@pytest.mark.xfail(strict=True, reason="GET …/compare is not there yet")
def test_compare_of_a_run_and_its_retry(api: Api) -> None:
    run_id = run_in(api, "failed")
    new: Json = api.act(run_id, "retry", expect=201)
    answer: Json = api.get(f"/v1/workflow-runs/{run_id}/compare/{new['id']}")
    assert run_id in str(answer)
    assert new["id"] in str(answer)


def test_pin_and_unpin(api: Api) -> None:
    run_id = run_in(api, "completed")
    response = api.request("POST", f"/v1/workflow-runs/{run_id}/pin")
    assert response.status_code in {200, 204}, response.text
    assert api.run(run_id)["pinned"] is True
    assert api.request("POST", f"/v1/workflow-runs/{run_id}/unpin").status_code in {200, 204}
    assert not api.run(run_id).get("pinned")


def test_the_list_is_an_array_newest_first_with_all_filters(api: Api) -> None:
    workflow, other = api.workflow(approval("a")), api.workflow(approval("a"))
    ids = [api.trigger(workflow, tags={"n": str(n % 2)}) for n in range(4)]
    elsewhere = api.trigger(other)
    api.cancel(ids[1])
    base = f"/v1/workflow-runs?project_id={api.project}"

    def listed(query: str = "") -> list[str]:
        return [run["id"] for run in api.get(base + query)]

    assert listed() == [elsewhere, *reversed(ids)]
    assert listed("&status=canceled") == [ids[1]]
    assert listed(f"&workflow_id={workflow}") == ids[::-1]
    assert listed("&tag=n:1") == [ids[3], ids[1]]
    assert listed(f"&tag=n:1&status=running&workflow_id={workflow}") == [ids[3]]
    assert listed(f"&workflow_id={other}&status=canceled") == []
    created = api.run(ids[2])["created_at"]
    assert ids[2] not in listed(f"&created_before={created}") or ids[2] in listed(
        f"&created_after={created}"
    )
    api.get(base + "&status=done", 422)
    for limit in ("0", "-1", "many", "1.5"):
        api.get(f"{base}&limit={limit}", 422)
    assert len(listed("&limit=1000")) == 5


def test_the_list_is_walked_by_link_and_by_cursor(api: Api) -> None:
    workflow = api.workflow(approval("a"))
    ids = [api.trigger(workflow) for _ in range(5)][::-1]
    base = f"/v1/workflow-runs?project_id={api.project}&limit=2"
    response = api.request("GET", base)
    assert [run["id"] for run in response.json()] == ids[:2]
    assert 'rel="next"' in response.headers["link"]
    cursor = response.headers["x-next-cursor"]
    page: Json = api.get(f"{base}&cursor={cursor}")
    assert [run["id"] for run in page["data"]] == ids[2:4]
    assert page["has_more"] is True
    page = api.get(f"{base}&cursor={page['next_cursor']}")
    assert [run["id"] for run in page["data"]] == ids[4:]
    assert page["has_more"] is False
    assert "next_cursor" not in page
    api.get(f"{base}&cursor=nonsense", 400)


def test_a_status_filter_follows_the_run(api: Api) -> None:
    run_id = run_in(api, "running")
    base = f"/v1/workflow-runs?project_id={api.project}&status="

    def where() -> list[str]:
        states = ["pending", "running", "paused", "completed", "failed", "timed_out", "canceled"]
        return [state for state in states if api.get(base + state)]

    assert where() == ["running"]
    api.act(run_id, "pause")
    assert where() == ["paused"]
    api.on(run_id, "a", "reject")
    assert where() == ["failed"]
    api.on(run_id, "a", "retry", expect=200)
    assert where() == ["running"]
    api.cancel(run_id)
    assert where() == ["canceled"]


def test_an_idempotency_key_repeats_the_answer_of_any_post(api: Api) -> None:
    run_id = run_in(api, "failed")
    key = {"Idempotency-Key": f"retry-{run_id}"}
    path = f"/v1/workflow-runs/{run_id}/retry"
    first = api.request("POST", path, headers=key)
    second = api.request("POST", path, headers=key)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["id"] == second.json()["id"]
    assert second.headers["idempotency-replayed"] == "true"
    listed: list[Json] = api.get(f"/v1/workflow-runs?project_id={api.project}")
    assert len(listed) == 2
    replay = f"/v1/workflow-runs/{run_id}/steps/a/replay-subtree"
    once = {"X-Idempotency-Key": f"replay-{run_id}"}
    assert api.post(replay, None, 200, headers=once) == api.post(replay, None, 200, headers=once)
    assert api.step(run_id, "a")["attempt"] == 2


@pytest.mark.parametrize("length", [256, 257])
def test_an_idempotency_key_has_at_most_256_characters(api: Api, length: int) -> None:
    workflow = api.workflow(approval("a"))
    api.post(
        f"/v1/workflows/{workflow}/trigger",
        {},
        201 if length == 256 else 422,
        headers={"Idempotency-Key": "k" * length},
    )


def test_a_disabled_workflow_is_not_triggered(api: Api) -> None:
    workflow = api.workflow(approval("a"), enabled=False)
    answer = api.post(f"/v1/workflows/{workflow}/trigger", {}, 409)
    assert answer["error"]["code"] == "conflict"


def test_a_run_keeps_its_version_whatever_happens_to_the_workflow(api: Api) -> None:
    workflow = api.workflow(approval("a"), job("b", after="a"))
    run_id = api.trigger(workflow)
    changed = api.request("PATCH", f"/v1/workflows/{workflow}", {"steps": [approval("z")]})
    assert changed.json()["version"] == 2
    assert api.request("PATCH", f"/v1/workflows/{workflow}", {"name": "n"}).json()["version"] == 2
    api.on(run_id, "a", "approve")
    api.until(run_id, "completed")
    assert set(api.steps(run_id)) == {"a", "b"}
    assert api.run(run_id)["workflow_version"] == 1
    assert api.run(api.trigger(workflow))["workflow_version"] == 2


def test_a_step_override_skips_and_satisfies(api: Api) -> None:
    workflow = api.workflow(approval("a"), job("b", after="a"))
    run_id = api.trigger(workflow, step_overrides=[{"step_ref": "a", "enabled": False}])
    api.until(run_id, "completed")
    assert api.step(run_id, "a")["skipped_by"] == "override"
    assert api.step(run_id, "b")["status"] == "completed"
    body = {"step_overrides": [{"step_ref": "zzz", "enabled": False}]}
    answer = api.post(f"/v1/workflows/{workflow}/trigger", body, 422)
    assert any("step_overrides" in line for line in answer["error"]["details"])

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

import httpx
import pytest

from pilotage.actors.idempotency import Idempotency, recall
from pilotage.actors.principal import ADMIN
from pilotage.persistence.memory import MemoryServer, MemoryStore
from pilotage.persistence.port import (
    IdempotencyRecord,
    RunWrite,
    StoreUnavailableError,
    Verdict,
)
from tests.http.conftest import (
    ADMIN_KEY,
    PROJECT,
    Server,
    StartServer,
    approval,
    define,
    job,
    read_step,
    trigger,
    wait_status,
    wait_step,
)
from tests.support.waiting import wait_until

KEY = {"Idempotency-Key": "k-1"}


async def test_a_repeated_trigger_answers_the_first_run(client: httpx.AsyncClient) -> None:
    await define(client, "w", [approval("gate")])
    first = await client.post("/v1/workflows/w/trigger", json={"payload": {"a": 1, "b": 2}},
                              headers=KEY)  # fmt: skip
    again = await client.post("/v1/workflows/w/trigger", json={"payload": {"b": 2, "a": 1}},
                              headers=KEY)  # fmt: skip
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    runs = (await client.get("/v1/workflow-runs")).json()["data"]
    assert len(runs) == 1


async def test_the_other_name_of_the_header_is_the_same(client: httpx.AsyncClient) -> None:
    await define(client, "w", [approval("gate")])
    first = await client.post("/v1/workflows/w/trigger", headers=KEY)
    again = await client.post(
        "/v1/workflows/w/trigger", headers={"X-Idempotency-Key": "k-1"}, json={}
    )
    assert again.json()["id"] == first.json()["id"]


async def test_the_same_key_with_another_request_is_422(client: httpx.AsyncClient) -> None:
    await define(client, "w", [approval("gate")])
    await client.post("/v1/workflows/w/trigger", json={"payload": 1}, headers=KEY)
    other = await client.post("/v1/workflows/w/trigger", json={"payload": 2}, headers=KEY)
    assert other.status_code == 422
    assert "Idempotency-Key" in other.json()["error"]["details"][0]


async def test_a_key_belongs_to_path_and_project(server: Server, client: httpx.AsyncClient) -> None:
    rival = await server.member(project="rival", name="rival")
    runs: set[str] = set()
    for who in (client, rival):
        for slug in ("w", "v"):
            await define(who, slug, [approval("gate")])
            made = await who.post(f"/v1/workflows/{slug}/trigger", headers=KEY)
            assert made.status_code == 201
            runs.add(made.json()["id"])
    assert len(runs) == 4


async def test_the_first_answer_is_given_again_when_what_was_made_has_changed_or_is_gone(
    client: httpx.AsyncClient,
) -> None:
    job_body = {"slug": "j", "endpoint_url": "https://example.com/"}
    for path, body in (("workflows", {"slug": "w", "steps": [approval("a")]}), ("jobs", job_body)):
        first = await client.post(f"/v1/{path}", json=body, headers=KEY)
        assert first.status_code == 201, first.text
        where = first.headers["location"]
        for change in (client.patch(where, json={"name": "other"}), client.delete(where)):
            assert (await change).is_success
            again = await client.post(f"/v1/{path}", json=body, headers=KEY)
            assert (again.status_code, again.json()) == (201, first.json())
            assert again.headers["location"] == where
            assert again.headers["idempotency-replayed"] == "true"
        assert (await client.get(where)).status_code == 404


async def test_a_large_answer_about_what_is_gone_is_a_conflict(client: httpx.AsyncClient) -> None:
    body = {"slug": "w", "steps": [approval(f"step-{i}") for i in range(100)]}
    first = await client.post("/v1/workflows", json=body, headers=KEY)
    again = await client.post("/v1/workflows", json=body, headers=KEY)
    assert (again.status_code, again.json()) == (201, first.json())
    assert (await client.delete(first.headers["location"])).is_success
    gone = await client.post("/v1/workflows", json=body, headers=KEY)
    assert gone.status_code == 409
    assert "gone" in gone.json()["message"]


async def test_a_check_of_a_trigger_is_remembered_too(client: httpx.AsyncClient) -> None:
    await define(client, "w", [approval("a")])
    first = await client.post("/v1/workflows/w/dry-run", json={"payload": 1}, headers=KEY)
    await client.patch("/v1/workflows/w", json={"steps": [approval("b")]})
    again = await client.post("/v1/workflows/w/dry-run", json={"payload": 1}, headers=KEY)
    assert (again.status_code, again.json()) == (200, first.json())
    assert again.headers["idempotency-replayed"] == "true"
    other = await client.post("/v1/workflows/w/dry-run", json={"payload": 2}, headers=KEY)
    assert other.status_code == 422


async def test_a_key_that_is_too_long_is_422(client: httpx.AsyncClient) -> None:
    await define(client, "w", [approval("gate")])
    for length, status in ((256, 201), (257, 422)):
        answer = await client.post(
            "/v1/workflows/w/trigger", headers={"Idempotency-Key": "x" * length}
        )
        assert answer.status_code == status


async def test_a_refused_request_is_not_remembered(
    server: Server, client: httpx.AsyncClient
) -> None:
    await define(client, "w", [job("a", "flaky")])
    run_id = (await trigger(client, "w"))["id"]
    await wait_status(client, run_id, "failed")
    path = f"/v1/workflow-runs/{run_id}/pause"
    assert (await client.post(path, headers=KEY)).status_code == 409
    await client.post(f"/v1/workflow-runs/{run_id}/steps/a/replay-subtree")
    server.latch.failing = False
    answer = await client.post(path, headers=KEY)
    assert "idempotency-replayed" not in answer.headers


async def test_a_repeated_command_answers_alike(client: httpx.AsyncClient) -> None:
    await define(client, "w", [approval("gate"), approval("other")])
    run_id = (await trigger(client, "w"))["id"]
    base = f"/v1/workflow-runs/{run_id}"
    for path, body in (
        ("pause", {}),
        ("resume", {}),
        ("pin", {}),
        ("unpin", {}),
        ("steps/gate/approve", {"comment": "x"}),
        ("steps/other/force-complete", {"result": 1}),
    ):
        first = await client.post(f"{base}/{path}", json=body, headers=KEY)
        again = await client.post(f"{base}/{path}", json=body, headers=KEY)
        assert (first.status_code, again.status_code) == (204, 204), path
        assert again.headers["idempotency-replayed"] == "true"


async def test_a_repeated_retry_of_a_step_starts_one_attempt(
    server: Server, client: httpx.AsyncClient
) -> None:
    await define(client, "w", [job("a", "flaky")])
    run_id = (await trigger(client, "w"))["id"]
    await wait_status(client, run_id, "failed")
    path = f"/v1/workflow-runs/{run_id}/steps/a/retry"
    for _ in range(2):
        answer = await client.post(path, headers=KEY)
        assert answer.json()["step_run"]["attempt"] == 2
        await wait_status(client, run_id, "failed")
    assert (await read_step(client, run_id, "a"))["attempt"] == 2


async def test_a_repeated_bulk_replay_makes_no_second_run(client: httpx.AsyncClient) -> None:
    await define(client, "w", [job("a")])
    run_id = (await trigger(client, "w"))["id"]
    await wait_status(client, run_id, "completed")
    body = {"workflow_run_ids": [run_id]}
    first = await client.post("/v1/workflow-runs/bulk-replay", json=body, headers=KEY)
    again = await client.post("/v1/workflow-runs/bulk-replay", json=body, headers=KEY)
    assert first.json() == again.json()


class ForgetsAnswers(MemoryStore):
    """Fails where a process might die: between the change and the answer that is remembered."""

    async def remember(self, record: IdempotencyRecord, fence: int) -> bool:
        raise StoreUnavailableError("gone")


async def test_a_bulk_cancel_that_was_cut_off_cancels_no_run_twice(
    start_server: StartServer,
) -> None:
    client = await (await start_server(ForgetsAnswers())).member()
    await define(client, "w", [approval("gate")])
    run = await trigger(client, "w")
    body = {"workflow_run_ids": [run["id"]]}
    first = await client.post("/v1/workflow-runs/bulk-cancel", json=body, headers=KEY)
    assert first.status_code == 503
    assert (await wait_status(client, run["id"], "canceled"))["id"] == run["id"]
    reopened = await client.post(f"/v1/workflow-runs/{run['id']}/steps/gate/retry")
    assert reopened.status_code == 200
    await client.post("/v1/workflow-runs/bulk-cancel", json=body, headers=KEY)
    assert (await client.get(f"/v1/workflow-runs/{run['id']}")).json()["status"] == "running"


class ForgetsEnds(MemoryStore):
    """Keeps what a request has begun; the answers are lost until `kept`."""

    kept = False

    async def remember(self, record: IdempotencyRecord, fence: int) -> bool:
        if recall(record.data).begun is None and not self.kept:
            raise StoreUnavailableError("gone")
        return await super().remember(record, fence)


async def test_an_event_that_was_cut_off_goes_to_the_same_steps_again(
    start_server: StartServer,
) -> None:
    store = ForgetsEnds()
    client = await (await start_server(store)).member()
    await define(client, "w", [{"step_ref": "a", "step_type": "wait_for_event", "event_key": "k"}])
    first = (await trigger(client, "w"))["id"]
    await wait_step(client, first, "a", "waiting")
    body = {"payload": 1, "buffer_secs": 60}
    assert (await client.post("/v1/events/k/send", json=body, headers=KEY)).status_code == 503
    await wait_status(client, first, "completed")
    second = (await trigger(client, "w"))["id"]
    await wait_step(client, second, "a", "waiting")
    store.kept = True
    sent = await client.post("/v1/events/k/send", json=body, headers=KEY)
    assert sent.json() == {"event_key": "k", "delivered": 1, "buffered": False}
    assert (await read_step(client, second, "a"))["status"] == "waiting"
    again = await client.post("/v1/events/k/send", json=body, headers=KEY)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == sent.json()
    other = await client.post("/v1/events/k/send", json={"payload": 2}, headers=KEY)
    assert other.status_code == 422


async def test_a_kept_event_that_was_cut_off_is_kept_once(start_server: StartServer) -> None:
    store = ForgetsEnds()
    client = await (await start_server(store)).member()
    await define(client, "w", [{"step_ref": "a", "step_type": "wait_for_event", "event_key": "k"}])
    body = {"payload": 1, "buffer_secs": 60}
    assert (await client.post("/v1/events/k/send", json=body, headers=KEY)).status_code == 503
    first = (await trigger(client, "w"))["id"]
    await wait_status(client, first, "completed")
    second = (await trigger(client, "w"))["id"]
    await wait_step(client, second, "a", "waiting")
    store.kept = True
    sent = (await client.post("/v1/events/k/send", json=body, headers=KEY)).json()
    assert (sent["delivered"], sent["buffered"]) == (0, True)
    assert (await read_step(client, second, "a"))["status"] == "waiting"


async def test_an_event_is_sent_to_nobody_when_its_key_cannot_be_kept(
    start_server: StartServer,
) -> None:
    client = await (await start_server(ForgetsAnswers())).member()
    await define(client, "w", [{"step_ref": "a", "step_type": "wait_for_event", "event_key": "k"}])
    run_id = (await trigger(client, "w"))["id"]
    await wait_step(client, run_id, "a", "waiting")
    assert (await client.post("/v1/events/k/send", headers=KEY)).status_code == 503
    assert (await read_step(client, run_id, "a"))["status"] == "waiting"
    assert (await client.post("/v1/events/k/send")).json()["delivered"] == 1


async def test_a_dry_run_is_not_remembered(server: Server, client: httpx.AsyncClient) -> None:
    await define(client, "w", [job("a", "flaky")])
    run_id = (await trigger(client, "w"))["id"]
    await wait_status(client, run_id, "failed")
    path = f"/v1/workflow-runs/{run_id}/retry"
    dry = await client.post(path, params={"dry_run": "true"}, headers=KEY)
    assert dry.status_code == 200
    assert (await client.post(path, headers=KEY)).status_code == 201


async def test_the_first_request_in_progress_is_409(
    server: Server, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await define(client, "w", [approval("gate")])
    entered, go_on = asyncio.Event(), asyncio.Event()
    trigger_of = server.runtime.gateway.trigger

    async def slow(*args: object, **kwargs: object) -> object:
        entered.set()
        await go_on.wait()
        return await trigger_of(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(server.runtime.gateway, "trigger", slow)
    first = asyncio.create_task(client.post("/v1/workflows/w/trigger", headers=KEY))
    await entered.wait()
    refused = await client.post("/v1/workflows/w/trigger", headers=KEY)
    assert refused.status_code == 409
    assert "in progress" in refused.json()["message"]
    go_on.set()
    assert (await first).status_code == 201
    again = await client.post("/v1/workflows/w/trigger", headers=KEY)
    assert again.headers["idempotency-replayed"] == "true"


async def test_an_answer_is_remembered_across_restarts(start_server: StartServer) -> None:
    contents = MemoryServer()
    first_server = await start_server(MemoryStore(contents))
    admin = {"X-Project-Id": PROJECT, **KEY}
    client = first_server.client(ADMIN_KEY, **admin)
    made = await client.post("/v1/workflows", json={"slug": "w", "steps": [approval("gate")]})
    run = await client.post("/v1/workflows/w/trigger")
    await first_server.runtime.store.release(first_server.runtime.owner, 1)
    second_server = await start_server(MemoryStore(contents))
    client = second_server.client(ADMIN_KEY, **admin)
    again = await client.post("/v1/workflows", json={"slug": "w", "steps": [approval("gate")]})
    assert again.json()["id"] == made.json()["id"]
    run_again = await client.post("/v1/workflows/w/trigger")
    assert run_again.json()["id"] == run.json()["id"]


async def test_a_large_answer_is_given_again_too(client: httpx.AsyncClient) -> None:
    await define(client, "w", [approval("gate")])
    body = {"payload": "x" * 20_000}
    first = await client.post("/v1/workflows/w/trigger", json=body, headers=KEY)
    again = await client.post("/v1/workflows/w/trigger", json=body, headers=KEY)
    assert again.json()["payload"] == first.json()["payload"]
    run_id = first.json()["id"]
    path = f"/v1/workflow-runs/{run_id}/pause"
    for _ in range(2):
        answer = await client.post(path, headers={**KEY, "Prefer": "return=representation"})
        assert answer.json()["status"] == "paused"


class ReplyLost(MemoryStore):
    """Writes, and does not tell so while `lost`."""

    lost = False

    async def commit(self, batch: Sequence[RunWrite], fence: int) -> list[Verdict]:
        verdicts = await super().commit(batch, fence)
        if self.lost:
            raise StoreUnavailableError("the reply was lost")
        return verdicts


async def test_no_answer_is_given_again_before_its_change_can_be_read(
    start_server: StartServer,
) -> None:
    store = ReplyLost()
    server = await start_server(store)
    client = await server.member()
    await define(client, "w", [approval("gate")])
    run = await trigger(client, "w")
    path = f"/v1/workflow-runs/{run['id']}"
    first = Idempotency(
        key=f"POST {path}/pause k",
        request_hash=hashlib.sha256(b"\0{}").hexdigest(),
        project_id=PROJECT,
    )
    store.lost = True
    pausing = asyncio.create_task(server.runtime.gateway.pause(run["id"], ADMIN, idempotency=first))
    await wait_until(lambda: not server.runtime.ready, "the reply was missed")
    assert await store.idempotency(PROJECT, first.key) is not None, "it is stored"
    key = {"Idempotency-Key": "k"}
    answer = await client.post(f"{path}/pause", headers=key)
    assert answer.status_code == 503
    assert "Retry-After" in answer.headers
    store.lost = False
    await pausing
    await wait_until(lambda: server.runtime.ready, "it is known")
    answer = await client.post(f"{path}/pause", headers=key)
    assert answer.headers["idempotency-replayed"] == "true"
    assert (await client.get(path)).json()["status"] == "paused"

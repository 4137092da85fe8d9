"""What somebody with a run token, a definition, a page of another site or nothing at all cannot do.
The whole list, and which test stands for which line: docs/threat-model.md.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from pilotage.actors.api_keys import ApiKeys
from pilotage.actors.executors.tokens import RunTokens
from pilotage.actors.kernel import SystemClock
from pilotage.actors.principal import ADMIN
from pilotage.persistence.memory import MemoryStore
from tests.blackbox.api import Api, ServerProcess, job
from tests.blackbox.jobserver import JobServer, accepted
from tests.blackbox.rest import operations, refused


@pytest.fixture
def jobs() -> Iterator[JobServer]:
    with JobServer(time.monotonic) as server:
        yield server


def test_a_run_token_opens_nothing_but_its_own_attempt(api: Api, jobs: JobServer) -> None:
    endpoint = jobs.endpoint(accepted())
    run = api.start(job("a", api.job(endpoint)))
    call = endpoint.call()
    holder = Api(api.server, project=api.project, key=call.token)
    tried = 0
    for operation in operations(api):
        path = operation.at({"workflowRunID": run, "stepRef": "a"})
        refused(holder.request(operation.method, path), 401)
        tried += 1
    holder.close()
    assert tried > 40
    assert api.run(run)["status"] == "running"


def test_a_page_of_another_site_is_not_let_read_or_write(server: ServerProcess) -> None:
    """No answer allows another origin, and nothing is believed because of where it comes from."""
    origin = {"Origin": "https://evil.test", "Host": "evil.test"}
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x"}
    with httpx.Client(base_url=server.url, timeout=20) as client:
        answers = [
            client.options("/v1/workflows", headers={**origin, **asks}),
            client.get("/health", headers=origin),
            client.post("/v1/workflows", headers={**origin, "Content-Type": "text/plain"}),
            client.get("/v1/workflows", headers={**origin, "Cookie": "key=x"}),
        ]
    assert [answer.status_code for answer in answers][2:] == [401, 401]
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert "set-cookie" not in answer.headers


def test_without_a_key_only_its_life_is_shown(server: ServerProcess) -> None:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        assert set(client.get("/health").json()) == {"status", "version", "ready"}
        assert set(client.get("/health/ready").json()) == {"status"}
        for path in ("/metrics", "/v1/workflow-runs", "/v1/quarantine", "/v1/api-keys"):
            refused(client.get(path), 401)


@pytest.mark.parametrize(
    "reference",
    ["os.system", "builtins.eval", "__import__", "pilotage.cli.root:main", "../../etc/passwd"],
)
def test_a_definition_names_no_function_that_is_not_registered(api: Api, reference: str) -> None:
    body = {"name": "w", "project_id": api.project, "steps": [job("a", reference)]}
    told = refused(api.request("POST", "/v1/workflows", body), 422)
    assert "unknown job" in told["message"]


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "gopher://127.0.0.1/x", "unix:///tmp/s", "//host/x", "javascript:1"],
)
def test_a_job_is_asked_over_http_and_by_no_other_way(api: Api, url: str) -> None:
    body = {"slug": "x", "project_id": api.project, "endpoint_url": url}
    refused(api.request("POST", "/v1/jobs", body), 422)


@pytest.mark.parametrize(
    "template",
    [
        "{{ payload.__class__ }}",
        "{{ payload.__class__.__mro__ }}",
        "{{ steps.a.output.__globals__ }}",
        "{{ env.PATH }}",
        "{{ config }}",
        "{{ payload | attr('__class__') }}",
        "{% for x in y %}{% endfor %}{{ 7 * 7 }}",
    ],
)
def test_a_template_reads_its_run_and_nothing_of_the_server(api: Api, template: str) -> None:
    steps: list[dict[str, Any]] = [
        job("a"),
        job("b", "echo", after="a", payload={"v": template}),
    ]
    body = {"name": "w", "project_id": api.project, "steps": steps}
    answer = api.request("POST", "/v1/workflows", body)
    if answer.status_code == 422:
        return
    assert answer.status_code == 201, answer.text
    run = api.trigger(answer.json()["id"], {"x": 1})
    api.until(run, "failed")
    assert "output" not in api.step(run, "b")


def test_no_expression_calls_what_is_not_its_own(api: Api) -> None:
    for expression in (
        "env('PATH')",
        "system('id')",
        "open(@)",
        "@.__class__.__init__.__globals__()",
    ):
        body = {"name": "w", "project_id": api.project}
        steps = [job("a", output_transform=expression)]
        refused(api.request("POST", "/v1/workflows", {**body, "steps": steps}), 422)


async def test_keys_and_tokens_are_compared_in_constant_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = MemoryStore()
    await store.open()
    fence = await store.acquire("test", 60)
    keys = ApiKeys(store, clock=SystemClock(), fence=lambda: fence, admin_key="plt_" + "a" * 43)
    _, secret = await keys.create(name="k", project_id="p", scopes=["jobs:read"], by=ADMIN)
    tokens = RunTokens(bytes(32))
    token = tokens.sign("run", 1_000, 60)
    compared: list[tuple[Any, Any]] = []
    real = hmac.compare_digest

    def compare(a: Any, b: Any) -> bool:
        compared.append((a, b))
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for given in (secret, "plt_" + "a" * 43, "plt_" + "b" * 43):
        compared.clear()
        await keys.authenticate(given)
        digest = hashlib.sha256(given.encode()).hexdigest()
        assert compared, "compared by something else"
        assert all(digest in pair for pair in compared)
    compared.clear()
    assert tokens.verify(token, "run", 1_000)
    assert not tokens.verify(token[:-1] + "!", "run", 1_000)
    assert len(compared) == 2

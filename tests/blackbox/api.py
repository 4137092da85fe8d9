"""A server process under test and a small client that knows the paths, bound to one project."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from tests.blackbox.jobserver import Endpoint
from tests.blackbox.serving import ADMIN_KEY
from tests.support.waiting import wait_until_sync

ROOT = Path(__file__).resolve().parents[2]

Json = dict[str, Any]
Steps = dict[str, Json]

# Long enough for a busy machine; nothing waits for it when all is well.
PATIENCE_SECS = 10.0


class ServerProcess:
    """`tests.blackbox.serving` on a free port. It can be killed and started again."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.log = data_dir.with_suffix(".log")
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def start(self, ahead_ms: int = 0) -> None:
        """Its clock is ahead of ours by `ahead_ms`."""
        with self.log.open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.blackbox.serving", str(self.data_dir), str(ahead_ms)],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        watchdog = threading.Timer(30, self._process.kill)
        watchdog.start()
        line = self._process.stdout.readline()
        watchdog.cancel()
        if not line.startswith("up "):
            raise AssertionError(f"the server did not start:\n{self.log.read_text()[-4000:]}")
        self.url = f"http://127.0.0.1:{line.split()[1]}"

    def kill(self) -> None:
        """SIGKILL: nothing can be tidied up."""
        process = self._process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        self._reap(process)

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        process = self._process
        assert process is not None
        process.terminate()
        return self._reap(process)

    def _reap(self, process: subprocess.Popen[str]) -> int:
        try:
            code = process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        assert process.stdout is not None
        process.stdout.close()
        self._process = None
        return code

    @property
    def running(self) -> bool:
        return self._process is not None


class Api:
    """Requests of one principal about one project."""

    def __init__(
        self, server: ServerProcess, *, project: str | None = None, key: str = ADMIN_KEY
    ) -> None:
        self.server = server
        self.project = project or f"p-{uuid4().hex[:12]}"
        self.key = key
        self._http = httpx.Client(timeout=20)

    def close(self) -> None:
        self._http.close()

    # -- plain requests

    def request(
        self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        named = {"Authorization": f"Bearer {self.key}", **(headers or {})}
        content = {} if body is None else {"json": body}
        return self._http.request(method, self.server.url + path, headers=named, **content)

    def raw(self, method: str, path: str, content: bytes) -> httpx.Response:
        """A request whose body is not our doing."""
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        return self._http.request(method, self.server.url + path, headers=headers, content=content)

    def get(self, path: str, expect: int = 200) -> Any:
        return answered(self.request("GET", path), expect)

    def post(
        self,
        path: str,
        body: Any = None,
        expect: int = 200,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        return answered(self.request("POST", path, body, headers=headers), expect)

    # -- definitions

    def job(self, endpoint: Endpoint, **fields: Any) -> str:
        """The slug of a new HTTP job; without retries unless asked for."""
        slug = f"j-{uuid4().hex[:12]}"
        body = {
            "project_id": self.project,
            "name": slug,
            "slug": slug,
            "endpoint_url": endpoint.url,
            "max_attempts": 1,
            "retry_initial_delay_secs": 0.01,
            **fields,
        }
        self.post("/v1/jobs", body, 201)
        return slug

    def workflow(self, *steps: Json, **fields: Any) -> str:
        """The id of a new workflow."""
        body = {"project_id": self.project, "name": f"w-{uuid4().hex[:12]}", "steps": list(steps)}
        workflow_id: str = self.post("/v1/workflows", body | fields, 201)["id"]
        return workflow_id

    def trigger(self, workflow: str, payload: Any = None, **fields: Any) -> str:
        """The id of a new run."""
        body = fields if payload is None else {"payload": payload, **fields}
        run_id: str = self.post(f"/v1/workflows/{workflow}/trigger", body, 201)["id"]
        return run_id

    def start(self, *steps: Json, payload: Any = None, **fields: Any) -> str:
        """The id of a run of a new workflow with these steps."""
        return self.trigger(self.workflow(*steps, **fields), payload)

    # -- runs

    def run(self, run_id: str) -> Json:
        run: Json = self.get(f"/v1/workflow-runs/{run_id}")
        return run

    def steps(self, run_id: str) -> Steps:
        listed: list[Json] = self.get(f"/v1/workflow-runs/{run_id}/steps")
        return {step["step_ref"]: step for step in listed}

    def step(self, run_id: str, ref: str) -> Json:
        return self.steps(run_id)[ref]

    def act(self, run_id: str, action: str, body: Any = None, expect: int = 204) -> Any:
        return self.post(f"/v1/workflow-runs/{run_id}/{action}", body, expect)

    def on(self, run_id: str, ref: str, action: str, body: Any = None, expect: int = 204) -> Any:
        return self.act(run_id, f"steps/{ref}/{action}", body, expect)

    def cancel(self, run_id: str, reason: str | None = None, expect: int = 204) -> Any:
        query = {} if reason is None else {"reason": reason}
        path = f"/v1/workflow-runs/{run_id}"
        if query:
            path += f"?{httpx.QueryParams(query)}"
        return answered(self.request("DELETE", path), expect)

    def history(self, run_id: str) -> list[Json]:
        page: Json = self.get(f"/v1/workflow-runs/{run_id}/events?limit=100")
        items: list[Json] = page["data"]
        while page["has_more"]:
            after = items[-1]["seq"]
            page = self.get(f"/v1/workflow-runs/{run_id}/events?limit=100&after={after}")
            items += page["data"]
        return items

    def explain(self, run_id: str) -> Steps:
        explained: Json = self.get(f"/v1/workflow-runs/{run_id}/explain")
        return {step["step_ref"]: step for step in explained["steps"]}

    def job_runs(self, run_id: str) -> list[Json]:
        listed: list[Json] = self.get(
            f"/v1/runs?workflow_run_id={run_id}&project_id={self.project}"
        )
        return listed

    def attempts(self, run_id: str, ref: str) -> list[Json]:
        """The job runs of one step, oldest first."""
        records = [record for record in self.job_runs(run_id) if record["step_ref"] == ref]
        return sorted(records, key=lambda record: record["attempt"])

    def send(self, key: str, payload: Any = None, **fields: Any) -> Json:
        body: Json = {"project_id": self.project, **fields}
        if payload is not None:
            body["payload"] = payload
        answer: Json = self.post(f"/v1/events/{key}/send", body)
        return answer

    # -- waiting

    def until(self, run_id: str, *states: str, within_secs: float = PATIENCE_SECS) -> Json:
        """The run, once it has one of these statuses."""
        seen: list[Json] = []

        def held() -> bool:
            seen[:] = [self.run(run_id)]
            return seen[0]["status"] in states

        self._wait(held, run_id, f"run {' or '.join(states)}", within_secs)
        return seen[0]

    def until_step(
        self,
        run_id: str,
        ref: str,
        wanted: str | Callable[[Json], bool],
        *,
        within_secs: float = PATIENCE_SECS,
    ) -> Json:
        """The step, once it is as wanted: `status`, `status/waiting_for` or a predicate."""
        seen: list[Json] = []

        def held() -> bool:
            seen[:] = [self.step(run_id, ref)]
            return wanted(seen[0]) if callable(wanted) else matches(seen[0], wanted)

        self._wait(held, run_id, f"step {ref} {wanted}", within_secs)
        return seen[0]

    def _wait(self, held: Callable[[], bool], run_id: str, what: str, within_secs: float) -> None:
        try:
            wait_until_sync(held, what, within_secs=within_secs)
        except AssertionError as error:
            run, steps = self.run(run_id), self.steps(run_id)
            found = {ref: (shown(step), step.get("error")) for ref, step in steps.items()}
            raise AssertionError(f"{error}; run is {run['status']}, steps {found}") from None

    def shown(self, run_id: str) -> dict[str, str]:
        """Each step as `status` or `status/waiting_for`."""
        return {ref: shown(step) for ref, step in self.steps(run_id).items()}


def shown(step: Json) -> str:
    held = step.get("waiting_for")
    return step["status"] if held is None else f"{step['status']}/{held}"


def matches(step: Json, wanted: str) -> bool:
    return shown(step) == wanted or step["status"] == wanted


def answered(response: httpx.Response, expect: int) -> Any:
    request = response.request
    assert response.status_code == expect, (
        f"{request.method} {request.url.path}: {response.status_code} instead of {expect}: "
        f"{response.text[:600]}"
    )
    return response.json() if response.content else None


def message(answer: Json) -> str:
    """The words of an error answer."""
    text: str = answer["error"]["message"]
    return text


# -- steps of a definition, in few words


def job(ref: str, job_id: str = "noop", after: Sequence[str] | str = (), **fields: Any) -> Json:
    return {"step_ref": ref, "job_id": job_id, **_after(after), **fields}


def approval(ref: str, after: Sequence[str] | str = (), **fields: Any) -> Json:
    return {"step_ref": ref, "step_type": "approval", **_after(after), **fields}


def event(ref: str, key: str, after: Sequence[str] | str = (), **fields: Any) -> Json:
    step = {"step_ref": ref, "step_type": "wait_for_event", "event_key": key}
    return step | _after(after) | fields


def sleep(ref: str, secs: float, after: Sequence[str] | str = (), **fields: Any) -> Json:
    step = {"step_ref": ref, "step_type": "sleep", "sleep_duration_secs": secs}
    return step | _after(after) | fields


def sub(ref: str, workflow: str, after: Sequence[str] | str = (), **fields: Any) -> Json:
    step = {"step_ref": ref, "step_type": "sub_workflow", "sub_workflow_id": workflow}
    return step | _after(after) | fields


def _after(after: Sequence[str] | str) -> Json:
    return {"depends_on": [after] if isinstance(after, str) else list(after)} if after else {}

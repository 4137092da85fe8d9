"""Canaries: known secrets go through many paths of a real server, and are nowhere afterwards.

Looked at: every answer, standard output and error at level debug, metrics, the printed settings,
what the commands say, and all that is in the store.
"""

from __future__ import annotations

import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from tests.blackbox.jobserver import Endpoint, JobServer, accepted, ok
from tests.cli.server import ROOT, CliProcess
from tests.support.redis import ValkeyForTests
from tests.support.waiting import wait_until_sync

ADMIN_KEY = "plt_" + "CanaryAdmin" * 3 + "x" * 10
PASSWORD = "CanaryPassword" * 2
SIGNING = "CanarySigning" * 3
PROJECT = "vault"


@pytest.fixture
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyForTests]:
    with ValkeyForTests(tmp_path_factory.mktemp("v")) as server:
        with redis.Redis(unix_socket_path=str(server.socket)) as client:
            client.config_set("requirepass", PASSWORD)
        yield server


@pytest.fixture
def jobs() -> Iterator[JobServer]:
    with JobServer(lambda: 0.0) as server:
        yield server


class Vault:
    """The server, everything it said, and the secrets it was told."""

    def __init__(self, valkey: ValkeyForTests, folder: Path) -> None:
        self.env = {
            "PILOTAGE_ADMIN_KEY": ADMIN_KEY,
            "PILOTAGE_REDIS_URL": f"{valkey.url}?password={PASSWORD}",
            "PILOTAGE_LOG_LEVEL": "debug",
            "PILOTAGE_LOG_FORMAT": "json",
            "PILOTAGE_ALLOW_PRIVATE_ENDPOINTS": "true",
            "PILOTAGE_LEASE_SECS": "1",
        }
        self.folder = folder
        self.log = folder / "log"
        self.store = redis.Redis(unix_socket_path=str(valkey.socket), password=PASSWORD)
        self.said: list[tuple[str, str]] = []
        self.secrets = {"admin key": ADMIN_KEY, "password": PASSWORD, "signing secret": SIGNING}
        self.process: CliProcess | None = None
        self.http = httpx.Client(timeout=30)

    def start(self) -> None:
        self.process = CliProcess("serve", "--port", "0", env=self.env, log=self.log)
        url = self.process.read_until("listening on ").split()[-1]
        self.http = httpx.Client(base_url=url, timeout=30)

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()
            self.said.append(("standard output", "\n".join(self.process.lines)))
            self.process = None
        self.http.close()

    def ask(
        self, method: str, path: str, body: Any = None, *, key: str = ADMIN_KEY, **more: Any
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}", "X-Project-Id": PROJECT}
        headers |= more.pop("headers", {})
        sent = {} if body is None else {"json": body}
        answer = self.http.request(method, path, headers=headers, **sent, **more)
        told = f"{answer.status_code} {dict(answer.headers)} {answer.text}"
        self.said.append((f"{method} {path}", told))
        return answer

    def make_key(self) -> str:
        """The one answer that has a secret in it."""
        made = self.ask(
            "POST", "/v1/api-keys", {"name": "ci", "project_id": PROJECT, "scopes": ["*"]}
        )
        assert made.status_code == 201, made.text
        self.said.pop()
        key: str = made.json()["key"]
        self.secrets["api key"] = key
        return key

    def command(self, *args: str) -> None:
        env = {**self.env, "PYTHONPATH": str(ROOT), "PILOTAGE_API_KEY": self.secrets["api key"]}
        if self.process is not None:
            env["PILOTAGE_URL"] = str(self.http.base_url)
        done = subprocess.run(
            [sys.executable, "-m", "pilotage.cli", *args],
            cwd=self.folder, env=env, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        self.said.append(("pilotage " + " ".join(args), done.stdout + done.stderr))

    def stored(self) -> Iterator[tuple[str, bytes]]:
        """Every value of the store, finished runs unpacked."""
        for name in self.store.keys("*"):
            assert isinstance(name, bytes)
            shown = name.decode()
            yield shown, name
            data = self.store.dump(name)
            assert isinstance(data, bytes)
            yield shown, data
            if self.store.type(name) == b"string":
                value = self.store.get(name)
                assert isinstance(value, bytes)
                yield shown, value
                start = value.find(b"\x78")
                while start >= 0:
                    with suppress(zlib.error):
                        yield shown, zlib.decompress(value[start:])
                    start = value.find(b"\x78", start + 1)
            elif self.store.type(name) == b"hash":
                for field, content in self.store.hgetall(name).items():
                    assert isinstance(field, bytes)
                    assert isinstance(content, bytes)
                    yield shown, field + b" " + content


@pytest.fixture
def vault(valkey: ValkeyForTests, tmp_path: Path) -> Iterator[Vault]:
    made = Vault(valkey, tmp_path)
    made.start()
    yield made
    made.stop()
    made.store.close()


def drive_definitions(vault: Vault, key: str, endpoint: Endpoint) -> str:
    body = {
        "name": "j", "slug": "j", "endpoint_url": endpoint.url, "signing_secret": SIGNING,
        "max_attempts": 2, "retry_initial_delay_secs": 0.01,
    }  # fmt: skip
    repeat = {"Idempotency-Key": "k1"}
    for _ in range(2):
        assert vault.ask("POST", "/v1/jobs", body, key=key, headers=repeat).status_code == 201
    for wrong in ([SIGNING], {"a": SIGNING}, 7, SIGNING * 1000):
        refused = {**body, "slug": "x", "signing_secret": wrong}
        assert vault.ask("POST", "/v1/jobs", refused, key=key).status_code == 422
    vault.ask("POST", "/v1/jobs", {**body, SIGNING[:20]: 1}, key=key)
    vault.said.pop()  # a field that is unknown is named
    half = '{"signing_secret": "' + SIGNING
    vault.ask("POST", "/v1/jobs", key=key, content=half.encode())
    vault.ask("PATCH", "/v1/jobs/j", {"signing_secret": SIGNING, "timeout_secs": 20}, key=key)
    for path in ("/v1/jobs", "/v1/jobs/j", "/v1/api-keys", "/v1/workflows"):
        assert vault.ask("GET", path, key=key).status_code == 200
    flow = {"name": "w", "slug": "w", "steps": [{"step_ref": "a", "job_id": "j"}]}
    assert vault.ask("POST", "/v1/workflows", flow, key=key).status_code == 201
    made = vault.ask("POST", "/v1/workflows/w/trigger", {"payload": {"n": 1}}, key=key)
    run: str = made.json()["id"]
    return run


def drive_callbacks(vault: Vault, key: str, endpoint: Endpoint) -> None:
    call = endpoint.call(1)
    vault.secrets["run token"] = call.token
    vault.secrets["signature of the run token"] = call.token.rpartition(".")[2]
    path = f"/sdk/v1/runs/{call.job_run_id}"
    forged = call.token[:-4] + ("AAAA" if call.token[-4:] != "AAAA" else "BBBB")
    for token in (forged, key, "x"):
        assert vault.ask("POST", f"{path}/complete", {}, key=token).status_code == 401
    vault.ask("POST", f"{path}/log", {"level": "info", "message": "hello"}, key=call.token)
    vault.ask("POST", f"{path}/progress", {"percent": "x"}, key=call.token)
    vault.ask("POST", f"{path}/fail?token={call.token}", {"error": "no"}, key=call.token)
    again = endpoint.call(2)
    vault.secrets["second run token"] = again.token
    assert vault.ask("POST", f"{path}/complete", {}, key=call.token).status_code in {409, 410}
    done = vault.ask("POST", f"/sdk/v1/runs/{again.job_run_id}/complete", {}, key=again.token)
    assert done.status_code in {200, 204}, done.text
    assert vault.ask("POST", f"{path}/complete", {}, key=again.token).status_code == 401


def drive_refusals(vault: Vault, key: str) -> None:
    for credentials in (f"Basic {key}", key, f"Bearer {key} {key}", f"bearer {key}x", ""):
        vault.ask("GET", "/v1/jobs", headers={"Authorization": credentials})
    vault.ask("GET", f"/v1/jobs?api_key={key}", key=key)
    vault.ask("GET", "/v1/nothing", key=key, headers={"X-Request-Id": "r1"})
    vault.ask("POST", "/v1/workflows/w/trigger", key=key, content=b"{" + key.encode())
    vault.ask("DELETE", "/v1/jobs", key=key)
    for path in (
        "/health",
        "/health/ready",
        "/metrics",
        "/reference/openapi.json",
        "/v1/quarantine",
    ):
        assert vault.ask("GET", path, key=key).status_code == 200


def drive_breakdowns(vault: Vault, key: str) -> None:
    """Something is wrong with the store: errors with tracebacks, and a password that is refused."""
    index = f"pilotage:{{s0}}:ix:{PROJECT}"
    vault.store.rename(index, "aside")
    vault.store.set(index, "not an index")
    assert vault.ask("GET", "/v1/workflow-runs?cursor=", key=key).status_code >= 500
    vault.store.delete(index)
    vault.store.rename("aside", index)
    vault.store.config_set("requirepass", "another")
    vault.store.client_kill_filter(_type="normal", skipme=True)

    def refused() -> bool:
        return vault.ask("GET", "/v1/workflow-runs?cursor=", key=key).status_code >= 500

    wait_until_sync(refused, "the store refuses the password")
    vault.store.config_set("requirepass", PASSWORD)
    wait_until_sync(lambda: not refused(), "it is as before", within_secs=30)


def test_no_secret_is_told_logged_or_stored(vault: Vault, jobs: JobServer) -> None:
    endpoint = jobs.endpoint(accepted(), accepted(), ok({}))
    key = vault.make_key()
    run = drive_definitions(vault, key, endpoint)
    drive_callbacks(vault, key, endpoint)
    path = f"/v1/workflow-runs/{run}"

    def ended() -> bool:
        return bool(vault.ask("GET", path, key=key).json()["status"] == "completed")

    wait_until_sync(ended, "the run completed")
    for part in ("", "/steps", "/events", "/graph", "/timeline", "/explain"):
        assert vault.ask("GET", path + part, key=key).status_code == 200
    vault.ask("GET", f"/v1/runs?workflow_run_id={run}", key=key)
    drive_refusals(vault, key)
    drive_breakdowns(vault, key)
    vault.command("doctor")
    vault.command("keys", "list", "--project", PROJECT)
    vault.command("runs", "show", run)
    vault.stop()
    vault.command("serve", "--print-config")
    vault.command("doctor")
    vault.env["PILOTAGE_REDIS_URL"] = vault.env["PILOTAGE_REDIS_URL"] + "-wrong"
    vault.command("serve", "--port", "0")
    vault.said.append(("the log", vault.log.read_text()))
    assert len(vault.log.read_text()) > 5_000, "level debug was to be looked at"
    assert "Traceback" in vault.log.read_text() or "traceback" in vault.log.read_text()

    told = [
        f"{what} in {where}: …{text[max(0, text.find(secret) - 60) :][: 80 + len(secret)]}"
        for where, text in vault.said
        for what, secret in vault.secrets.items()
        if secret in text
    ]
    assert told == []
    kept = [
        f"{what} in {name}"
        for name, data in vault.stored()
        for what, secret in vault.secrets.items()
        if secret.encode() in data
        # To sign with it the server must have it: it is in the job's definition and nowhere else.
        and not (what == "signing secret" and ":rec:job:" in name)
    ]
    assert kept == []

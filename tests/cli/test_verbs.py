"""Every verb of an operator once, end to end: a real server, real exit statuses, JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pilotage.cli.errors import FAILED, NOT_AUTHORIZED, NOT_FOUND, USAGE
from tests.cli.conftest import Cli
from tests.support.waiting import wait_until_sync

NO_RUN = "01900000-0000-7000-8000-000000000000"


def start(cli: Cli, workflow: str, **payload: Any) -> str:
    run_id: str = cli("trigger", workflow, "--payload", json.dumps(payload)).item["id"]
    return run_id


def status_of(cli: Cli, run_id: str) -> str:
    status: str = cli("runs", "show", run_id).item["status"]
    return status


def step_of(cli: Cli, run_id: str, ref: str) -> dict[str, Any]:
    steps: list[dict[str, Any]] = cli("runs", "show", run_id).item["steps"]
    return next(step for step in steps if step["step_ref"] == ref)


def wait_status(cli: Cli, run_id: str, status: str) -> None:
    wait_until_sync(lambda: status_of(cli, run_id) == status, f"{run_id} is {status}")


def failed_run(cli: Cli, tmp_path: Path) -> str:
    run_id = start(cli, "broken", mended=str(tmp_path / "mended"))
    cli("runs", "watch", run_id, status=FAILED)
    return run_id


# --- starting and watching -----------------------------------------------------------------------


def test_trigger_and_watch_to_the_end(cli: Cli) -> None:
    said = cli("trigger", "greet", "--payload", '{"say": "hi"}', "--tag", "of=watch", "--watch")
    types = [item["type"] for item in said.items]
    assert types[0] == "run_created"
    assert types[-1] == "run_ended"
    assert [item["seq"] for item in said.items] == list(range(1, len(types) + 1))


def test_payload_from_a_file(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "payload.json"
    file.write_text('{"say": [1, 2]}')
    run_id = cli("trigger", "greet", "--payload", f"@{file}").item["id"]
    cli("runs", "watch", run_id)
    assert step_of(cli, run_id, "second")["output"] == [1, 2]


def test_the_same_idempotency_key_starts_one_run(cli: Cli) -> None:
    one, other = (cli("trigger", "greet", "--idempotency-key", "once").item for _ in range(2))
    assert one["id"] == other["id"]


def test_a_delayed_run_waits(cli: Cli) -> None:
    run = cli("trigger", "greet", "--delay", "3600").item
    assert run["status"] == "pending"
    assert cli("runs", "cancel", run["id"]).item["status"] == "canceled"


def test_watching_a_failed_run_fails(cli: Cli, tmp_path: Path) -> None:
    run_id = failed_run(cli, tmp_path)
    assert cli("runs", "watch", run_id, status=FAILED).items[-1]["data"]["status"] == "failed"


def test_list_filters(cli: Cli) -> None:
    run_id = cli("trigger", "greet", "--tag", "of=list", "--watch")
    found = cli("runs", "list", "--tag", "of=list", "--status", "completed").items
    assert len(found) == 1
    assert found[0]["tags"] == {"of": "list"}
    assert cli("runs", "list", "--tag", "of=list", "--status", "failed").items == []
    by_slug = cli("runs", "list", "--workflow", "greet", "--limit", "100").items
    assert {run["workflow_id"] for run in by_slug} == {found[0]["workflow_id"]}
    assert run_id.status == 0


def test_list_follows_pages(cli: Cli) -> None:
    runs = {start(cli, "greet") for _ in range(3)}
    assert len(cli("runs", "list", "--limit", "2").items) == 2
    assert runs <= {run["id"] for run in cli("runs", "list", "--limit", "1000").items}


# --- steering ------------------------------------------------------------------------------------


def test_pause_and_resume(cli: Cli, gate: Path) -> None:
    run_id = start(cli, "held", gate=str(gate))
    assert cli("runs", "pause", run_id).item["status"] == "paused"
    assert cli("runs", "pause", run_id).item["status"] == "paused"
    gate.touch()
    wait_until_sync(
        lambda: step_of(cli, run_id, "gate")["status"] == "completed", "the gate is passed"
    )
    assert step_of(cli, run_id, "after-gate")["waiting_for"] == "paused"
    assert cli("runs", "resume", run_id).item["status"] in {"running", "completed"}
    cli("runs", "watch", run_id)
    assert "completed" in cli("runs", "pause", run_id, status=FAILED).err


def test_cancel_one_with_a_reason(cli: Cli, gate: Path) -> None:
    run_id = start(cli, "held", gate=str(gate))
    assert "too late" in cli("runs", "cancel", run_id, "--reason", "too late").item["error"]
    cli("runs", "watch", run_id, status=FAILED)


def test_cancel_many_and_what_it_would_do(cli: Cli, gate: Path) -> None:
    runs = [start(cli, "held", gate=str(gate)) for _ in range(2)]
    cli("runs", "cancel", "--dry-run", *runs)
    assert {status_of(cli, run_id) for run_id in runs} == {"running"}
    done = cli("runs", "cancel", *runs, NO_RUN, status=FAILED).items
    assert [item["status"] for item in done] == ["canceled", "canceled", "failed"]
    assert {status_of(cli, run_id) for run_id in runs} == {"canceled"}
    cli("runs", "cancel", *runs, "--reason", "no", status=USAGE)


def test_retry_makes_a_new_run(cli: Cli, tmp_path: Path) -> None:
    run_id = failed_run(cli, tmp_path)
    would = cli("runs", "retry", run_id, "--dry-run").item
    assert would["started"] == ["weak"]
    (tmp_path / "mended").touch()
    made = cli("runs", "retry", run_id).item
    assert made["retry_of_run_id"] == run_id
    cli("runs", "watch", made["id"])
    assert status_of(cli, run_id) == "failed"
    assert "409" not in cli("runs", "retry", made["id"], status=FAILED).err


def test_retry_watches_when_asked(cli: Cli, tmp_path: Path) -> None:
    run_id = failed_run(cli, tmp_path)
    cli("runs", "retry", run_id, "--watch", status=FAILED)
    (tmp_path / "mended").touch()
    assert cli("runs", "retry", run_id, "--watch").items[-1]["type"] == "run_ended"


def test_retry_step_in_place(cli: Cli, tmp_path: Path) -> None:
    run_id = failed_run(cli, tmp_path)
    assert cli("runs", "retry-step", run_id, "weak", "--dry-run").item["started"] == ["weak"]
    assert status_of(cli, run_id) == "failed"
    (tmp_path / "mended").touch()
    assert cli("runs", "retry-step", run_id, "weak").item["step_run"]["attempt"] == 2
    cli("runs", "watch", run_id)


def test_replay_a_step_and_what_depends_on_it(cli: Cli) -> None:
    run_id = start(cli, "greet", say=1)
    cli("runs", "watch", run_id)
    assert cli("runs", "replay", run_id, "first", "--dry-run").item["reset"] == ["first", "second"]
    assert cli("runs", "replay", run_id, "first").item == {"reset_steps": 2}
    cli("runs", "watch", run_id)
    assert step_of(cli, run_id, "second")["attempt"] == 2


def test_replay_a_whole_run(cli: Cli) -> None:
    run_id = start(cli, "greet", say=1)
    cli("runs", "watch", run_id)
    item = cli("runs", "replay", run_id).item
    assert item["status"] == "replayed"
    cli("runs", "watch", item["new_workflow_run_id"])


def test_approve_as_one_who_may(cli: Cli) -> None:
    run_id = start(cli, "review")
    assert "mira" in cli("runs", "approve", run_id, "decide", status=NOT_AUTHORIZED).err
    cli("runs", "approve", run_id, "decide", "--comment", "fine", "--as", "mira")
    cli("runs", "watch", run_id)
    output = step_of(cli, run_id, "decide")["output"]
    assert (output["approved_by"], output["comment"]) == ("mira", "fine")


def test_reject(cli: Cli) -> None:
    run_id = start(cli, "review")
    cli("runs", "reject", run_id, "decide", "--reason", "not like this", "--as", "ops")
    assert cli("runs", "watch", run_id, status=FAILED)
    assert "not like this" in step_of(cli, run_id, "decide")["error"]


def test_skip_and_what_it_would_do(cli: Cli, tmp_path: Path) -> None:
    run_id = failed_run(cli, tmp_path)
    would = cli("runs", "skip", run_id, "weak", "--reason", "r", "--dry-run").item
    assert would["skipped"] == ["weak"]
    assert would["started"] == ["strong"]
    assert status_of(cli, run_id) == "failed"
    cli("runs", "skip", run_id, "weak", "--reason", "not needed")
    cli("runs", "watch", run_id)
    assert step_of(cli, run_id, "weak")["error"] == "not needed"


def test_complete_with_a_result(cli: Cli, tmp_path: Path) -> None:
    run_id = failed_run(cli, tmp_path)
    result = '{"by": "hand"}'
    would = cli("runs", "complete", run_id, "weak", "--result", result, "--dry-run").item
    assert would["completed"] == ["weak"]
    cli("runs", "complete", run_id, "weak", "--result", result)
    cli("runs", "watch", run_id)
    assert step_of(cli, run_id, "weak")["output"] == {"by": "hand"}


def test_explain(cli: Cli) -> None:
    run_id = start(cli, "review")
    lines = cli("runs", "explain", run_id).item["steps"]
    assert [line["waiting_for"] for line in lines] == ["approval", "dependencies"]
    cli("runs", "cancel", run_id)


def test_events_after_a_number(cli: Cli) -> None:
    run_id = start(cli, "greet")
    watched = cli("runs", "watch", run_id).items
    assert cli("runs", "events", run_id).items == watched
    assert cli("runs", "events", run_id, "--after", "2", "--limit", "3").items == watched[2:5]


def test_pin_and_unpin(cli: Cli) -> None:
    run_id = start(cli, "greet")
    cli("runs", "pin", run_id)
    assert cli("runs", "show", run_id).item["pinned"] is True
    cli("runs", "unpin", run_id)
    assert "pinned" not in cli("runs", "show", run_id).item


def test_send_an_event_to_those_who_wait_and_keep_one_for_those_who_will(cli: Cli) -> None:
    run_id = start(cli, "paid", order="A/1")
    wait_until_sync(
        lambda: step_of(cli, run_id, "payment").get("waiting_for") == "event", "it waits"
    )
    sent = cli("send-event", "payment/A/1", "--payload", '{"cents": 5}').item
    assert (sent["delivered"], sent["buffered"]) == (1, False)
    cli("runs", "watch", run_id)
    assert step_of(cli, run_id, "payment")["output"] == {"cents": 5}
    kept = cli("send-event", "payment/A/2", "--keep", "60").item
    assert (kept["delivered"], kept["buffered"]) == (0, True)
    cli("runs", "watch", start(cli, "paid", order="A/2"))


def test_the_same_as_tables(cli: Cli, monkeypatch: pytest.MonkeyPatch, gate: Path) -> None:
    """What a terminal gets; the details of its look are in test_terminal."""
    monkeypatch.setenv("COLUMNS", "160")
    run_id = start(cli, "held", gate=str(gate))
    assert "held" in cli("runs", "list", "--table").out
    assert "version 1" in cli("runs", "show", run_id, "--table").out
    assert "gate" in cli("runs", "explain", run_id, "--table").out
    assert "started" in cli("runs", "events", run_id, "--table").out
    assert "paused" in cli("runs", "pause", run_id, "--table").out
    would = cli("runs", "skip", run_id, "gate", "--reason", "r", "--dry-run", "--table").out
    assert "would be skipped: gate" in would
    assert "nothing was changed" in cli("runs", "cancel", run_id, "--dry-run", "--table").out
    assert "canceled" in cli("runs", "cancel", run_id, "--table").out
    assert "pending" in cli("trigger", "greet", "--delay", "3600", "--table").out
    assert "greet" in cli("workflows", "list", "--table").out
    assert "mira, ops" in cli("workflows", "show", "review", "--table").out
    assert "payment/" in cli("workflows", "show", "paid", "--table").out
    assert "plt_" in cli("keys", "create", "table", "--scope", "jobs:read", "--table").out
    assert "never" in cli("keys", "list", "--table").out
    assert "no step waits" in cli("send-event", "nobody", "--table").out


# --- what is not there, or not allowed -----------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [["runs", "show", NO_RUN], ["runs", "watch", NO_RUN], ["runs", "pause", NO_RUN],
     ["runs", "resume", NO_RUN], ["runs", "cancel", NO_RUN], ["runs", "retry", NO_RUN],
     ["runs", "retry-step", NO_RUN, "a"], ["runs", "replay", NO_RUN, "a"],
     ["runs", "approve", NO_RUN, "a"], ["runs", "reject", NO_RUN, "a"],
     ["runs", "skip", NO_RUN, "a", "--reason", "r"], ["runs", "complete", NO_RUN, "a"],
     ["runs", "explain", NO_RUN], ["runs", "events", NO_RUN], ["runs", "pin", NO_RUN],
     ["runs", "show", "no-id"], ["runs", "show", "../workflows"],
     ["trigger", "no-such-workflow"], ["workflows", "show", "nope"],
     ["workflows", "delete", "nope"], ["keys", "revoke", NO_RUN]],
    ids=lambda args: "-".join(args[:2]),
)  # fmt: skip
def test_what_is_not_there_is_status_3_and_one_line(cli: Cli, args: list[str]) -> None:
    said = cli(*args, status=NOT_FOUND)
    assert said.out == ""
    assert said.err.count("\n") == 1


def test_a_key_that_is_none_is_status_4(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOTAGE_API_KEY", "plt_wrong")
    said = cli("runs", "list", status=NOT_AUTHORIZED)
    assert "plt_wrong" not in said.err


def test_an_admin_key_without_a_project_is_told_what_to_do(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PILOTAGE_PROJECT")
    assert "project" in cli("runs", "list", status=USAGE).err
    assert cli("runs", "list", "--project", "elsewhere").items == []


# --- definitions, jobs, keys ---------------------------------------------------------------------


def test_workflows(cli: Cli) -> None:
    slugs = {item["slug"] for item in cli("workflows", "list").items}
    assert {"greet", "held", "review", "broken"} <= slugs
    shown = cli("workflows", "show", "greet").item
    assert [step["step_ref"] for step in shown["steps"]] == ["first", "second"]


def test_apply_says_what_it_did(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "flow.yaml"
    file.write_text(
        "slug: applied\n"
        "jobs: [{slug: echo, execution_mode: python, max_attempts: 2}]\n"
        "max_parallel_steps: 3\n"
        "steps: [{step_ref: a, job_id: echo}]\n"
    )
    outcomes = [item["outcome"] for item in cli("apply", str(file), "--dry-run").items]
    assert outcomes == ["would be created"] * 2
    cli("workflows", "show", "applied", status=NOT_FOUND)
    done = cli("apply", str(file)).items
    assert [(i["kind"], i["outcome"]) for i in done] == [
        ("job", "created"),
        ("workflow", "created"),
    ]
    assert {item["outcome"] for item in cli("apply", str(file)).items} == {"unchanged"}
    assert "echo" in {item["slug"] for item in cli("jobs", "list").items}
    # The file is the whole truth: what it no longer says is the default again.
    file.write_text("slug: applied\nsteps: [{step_ref: a, job_id: echo}]\n")
    assert cli("apply", str(file)).item["version"] == 2
    assert cli("workflows", "show", "applied").item["max_parallel_steps"] == 0
    cli("trigger", "applied", "--watch")
    assert cli("workflows", "delete", "applied").item["deleted"] is True
    cli("workflows", "show", "applied", status=NOT_FOUND)


def test_apply_places_sub_workflows_first(cli: Cli, tmp_path: Path) -> None:
    outer, inner = tmp_path / "outer.json", tmp_path / "inner.json"
    outer.write_text(
        json.dumps({"slug": "outer", "steps": [
            {"step_ref": "s", "type": "sub_workflow", "sub_workflow_id": "inner"}]})
    )  # fmt: skip
    inner.write_text(json.dumps({"slug": "inner", "steps": [{"step_ref": "a", "job_id": "echo"}]}))
    assert [i["slug"] for i in cli("apply", str(outer), str(inner)).items] == ["inner", "outer"]
    cli("trigger", "outer", "--watch")


def test_a_wrong_file_changes_nothing_and_lists_everything(cli: Cli, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("slug: good\nsteps: [{step_ref: a, job_id: echo}]\n")
    bad.write_text("slug: bad\nsteps: [{step_ref: a}, {step_ref: b, depends_on: [c], nope: 1}]\n")
    said = cli("apply", str(good), str(bad), status=USAGE)
    for word in ("bad.yaml", "steps[0]", "unknown step", "nope"):
        assert word in said.err
    cli("workflows", "show", "good", status=NOT_FOUND)
    unknown = tmp_path / "unknown.yaml"
    unknown.write_text("slug: unknown\nsteps: [{step_ref: a, job_id: no-such-job}]\n")
    assert "no-such-job" in cli("apply", str(unknown), status=USAGE).err


def test_keys(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    made = cli("keys", "create", "reader", "--scope", "workflows:read").item
    assert made["key"].startswith("plt_")
    listed = {item["id"]: item for item in cli("keys", "list").items}
    assert "key" not in listed[made["id"]]
    with monkeypatch.context() as other:
        other.setenv("PILOTAGE_API_KEY", made["key"])
        other.delenv("PILOTAGE_PROJECT")
        cli("runs", "list")
        assert "workflows:trigger" in cli("trigger", "greet", status=NOT_AUTHORIZED).err
    cli("keys", "revoke", made["id"])
    monkeypatch.setenv("PILOTAGE_API_KEY", made["key"])
    cli("runs", "list", status=NOT_AUTHORIZED)


def test_an_admin_key_that_expires(cli: Cli) -> None:
    made = cli("keys", "create", "chief", "--scope", "*", "--admin", "--expires-in-days", "1").item
    assert made["project_id"] == "*"
    assert made["expires_at"]
    cli("keys", "revoke", made["id"])


def test_doctor_finds_a_healthy_server(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PILOTAGE_DATA_DIR", str(tmp_path))
    found = {item["check"]: item["result"] for item in cli("doctor").items}
    assert set(found.values()) == {"ok"}, found
    assert {"version", "data directory", "embedded store", "clock", "ready", "key"} <= set(found)

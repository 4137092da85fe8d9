"""Inputs, templates, conditions, transforms, bounds (section 8)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.blackbox.api import Api, Json, Steps, approval, job
from tests.blackbox.jobserver import Answer, JobServer, ok, status

MIB = 1024 * 1024


def echoed(api: Api, payload: Any, fields: Any, *before: Json, **more: Any) -> Any:
    """The input of a step with this `payload` field, as its job saw it."""
    after = [step["step_ref"] for step in before]
    run_id = api.start(
        *before, job("a", "echo", after=after, payload=fields, **more), payload=payload
    )
    api.until(run_id, "completed")
    return api.step(run_id, "a")["output"]


def failing(api: Api, payload: Any, fields: Any) -> str:
    run_id = api.start(job("a", "echo", payload=fields), payload=payload)
    api.until(run_id, "failed")
    step = api.step(run_id, "a")
    assert step["attempt"] == 0
    error: str = step["error"]
    return error


def test_the_input_is_the_payload_with_the_steps_own_merged_over_it(api: Api) -> None:
    seen = echoed(api, {"a": 1, "deep": {"x": 1}}, {"b": 2, "deep": {"y": 2}})
    assert seen == {"a": 1, "b": 2, "deep": {"y": 2}, "parent_outputs": {}}


def test_parent_outputs_has_the_direct_dependencies_only(api: Api) -> None:
    run_id = api.start(
        job("one", "value", payload={"value": 1}),
        job("two", "value", payload={"value": 2}, after="one"),
        job("three", "echo", after="two"),
    )
    api.until(run_id, "completed")
    assert api.step(run_id, "three")["output"] == {"parent_outputs": {"two": 2}}


def test_a_key_parent_outputs_in_the_payload_gives_way(api: Api) -> None:
    assert echoed(api, {"parent_outputs": "mine"}, {})["parent_outputs"] == {}


@pytest.mark.parametrize("payload", [5, "text", [1, 2], True])
def test_a_payload_may_be_any_json(api: Api, payload: Any) -> None:
    run_id = api.start(job("a", "echo"), payload=payload)
    api.until(run_id, "completed")
    assert api.run(run_id)["payload"] == payload


TEMPLATES: list[tuple[Any, Any]] = [
    ("{{ payload.n }}", 5),
    ("{{payload.n}}", 5),
    ("{{ n }}", 5),
    ("n={{ payload.n }}!", "n=5!"),
    ("{{ payload.flag }}", True),
    ("{{ payload.flag }}{{ payload.n }}", "true5"),
    ("{{ payload.list[0] }}", "x"),
    ("{{ payload.list[1].deep }}", [1]),
    ("{{ payload.obj }}", {"k": None}),
    ("{{ payload.nothing }}", None),
    ("{{ payload.a-b }}", "hyphen"),
    ("{{ payload.missing | default: 7 }}", 7),
    ('{{ payload.missing | default: "x y" }}', "x y"),
    ("{{ payload.missing | default: null }}", None),
    ("{{ payload.missing | default: [1] }}", [1]),
    ("{{ payload.n | default: 7 }}", 5),
    ("{{ missing.path[3] | default: false }}", False),
    ("{{ payload.f }}", 1.5),
    ("{{ payload.big }}", 2**53 + 1),
    ("no template", "no template"),
    ("{ payload.n }", "{ payload.n }"),
    ({"deep": ["{{ payload.n }}"]}, {"deep": [5]}),
    ("{{ payload.text }}", "{{ payload.n }}"),
    ("é {{ payload.uni }}", "é ü☃"),
]
PAYLOAD: Json = {
    "n": 5,
    "flag": True,
    "list": ["x", {"deep": [1]}],
    "obj": {"k": None},
    "nothing": None,
    "a-b": "hyphen",
    "f": 1.5,
    "big": 2**53 + 1,
    "text": "{{ payload.n }}",
    "uni": "ü☃",
}


@pytest.mark.parametrize(("template", "value"), TEMPLATES, ids=[str(t[0]) for t in TEMPLATES])
def test_templates(api: Api, template: Any, value: Any) -> None:
    assert echoed(api, PAYLOAD, {"got": template})["got"] == value


def test_templates_see_steps_and_the_run(api: Api, jobs: JobServer) -> None:
    bad = api.job(jobs.endpoint(status(400)))
    workflow = api.workflow(
        job("my-step", "value", payload={"value": {"k": [1, 2]}}),
        job("soft_1", bad, on_failure="continue"),
        job(
            "a",
            "echo",
            after=["my-step", "soft_1"],
            payload={
                "out": "{{ steps.my-step.output.k[1] }}",
                "all": "{{ steps.my-step.output }}",
                "status": "{{ steps.my-step.status }}/{{ steps.soft_1.status }}",
                "none": '{{ steps.soft_1.output | default: "no" }}',
                "id": "{{ run.id }}",
                "tag": "{{ run.tags.team }}",
            },
        ),
    )
    run_id = api.trigger(workflow, {}, tags={"team": "red"})
    api.until(run_id, "completed")
    seen = api.step(run_id, "a")["output"]
    assert seen["out"] == 2
    assert seen["all"] == {"k": [1, 2]}
    assert seen["status"] == "completed/failed"
    assert seen["none"] == "no"
    assert seen["id"] == run_id
    assert seen["tag"] == "red"


@pytest.mark.parametrize(
    "path",
    [
        "payload.missing",
        "payload.list[9]",
        "payload.n.deep",
        "missing",
        "payload.list.x",
        "run.tags.nope",
    ],
)
def test_a_path_that_does_not_resolve_fails_the_step_and_is_named(api: Api, path: str) -> None:
    error = failing(api, PAYLOAD, {"got": f"x {{{{ {path} }}}}"})
    assert path in error


@pytest.mark.parametrize(
    "template",
    [
        "{{ }}",
        "{{ payload..n }}",
        "{{ payload.n | upper }}",
        "{{ payload.n",
        "{{ 1 + 1 }}",
        "{{ steps.unknown.output }}",
        "{{ payload.x | default: }}",
        "{{ payload[n] }}",
        "{{ __class__.__mro__() }}",
        "{{ steps.a.secret }}",
        "{{ run.nothing }}",
    ],
)
def test_a_bad_template_is_refused_at_definition_with_its_path(api: Api, template: str) -> None:
    body = {
        "project_id": api.project,
        "name": "w",
        "steps": [job("a", payload={"got": [template]})],
    }
    response = api.request("POST", "/v1/workflows", body)
    assert response.status_code == 422, response.text
    [line] = response.json()["error"]["details"]
    assert line.startswith("steps[0].payload"), line


def cond(kind: str, left: Any, right: Any) -> Json:
    return {"type": kind, "left": left, "right": right}


CONDITIONS: list[tuple[Json, bool]] = [
    (cond("eq", 5, 5.0), True),
    (cond("eq", 5, "5"), False),
    (cond("eq", True, 1), False),
    (cond("eq", [1, {"a": 2}], [1.0, {"a": 2.0}]), True),
    (cond("eq", None, None), True),
    (cond("ne", "{{ payload.n }}", 5), False),
    (cond("ne", "{{ payload.n }}", "5"), True),
    (cond("gt", "{{ payload.n }}", 4), True),
    (cond("gte", "{{ payload.n }}", 5), True),
    (cond("lt", "{{ payload.n }}", 5), False),
    (cond("lte", 5.0, "{{ payload.n }}"), True),
    (cond("gt", "b", "a"), True),
    (cond("in", 5, [1, "{{ payload.n }}"]), True),
    (cond("in", "5", [1, 5]), False),
    (cond("in", "x", "{{ payload.list }}"), True),
    (cond("contains", "{{ payload.list }}", "x"), True),
    (cond("contains", "haystack", "stack"), True),
    (cond("regex", "order-17", "^order-[0-9]+$"), True),
    (cond("regex", "order-x", "^order-[0-9]+$"), False),
    ({"type": "exists", "operand": "{{ payload.n }}"}, True),
    ({"type": "exists", "operand": "{{ payload.missing.deep }}"}, False),
    ({"type": "not", "condition": cond("eq", 1, 1)}, False),
    ({"type": "all_of", "conditions": [cond("eq", 1, 1), cond("eq", 1, 2)]}, False),
    ({"type": "any_of", "conditions": [cond("eq", 1, 2), cond("eq", 1, 1)]}, True),
    (cond("eq", {"step_ref": "first"}, "completed"), True),
    (cond("eq", {"value": {"step_ref": "first"}}, {"value": {"step_ref": "first"}}), True),
    ({"type": "step_status", "step_ref": "first", "status": "completed"}, True),
    ({"type": "step_status_in", "step_ref": "first", "statuses": ["failed"]}, False),
    (cond("eq", "{{ steps.first.output.ok }}", 1), True),
]


def test_conditions(api: Api) -> None:
    steps = [job("first")]
    steps += [
        job(f"c{n}", after="first", condition=condition)
        for n, (condition, _) in enumerate(CONDITIONS)
    ]
    run_id = api.start(*steps, payload=PAYLOAD)
    api.until(run_id, "completed", "failed")
    found: Steps = api.steps(run_id)
    wrong = [
        (condition, expected, found[f"c{n}"])
        for n, (condition, expected) in enumerate(CONDITIONS)
        if found[f"c{n}"]["status"] != ("completed" if expected else "skipped")
    ]
    assert not wrong


@pytest.mark.parametrize(
    "condition",
    [
        {"type": "eq", "left": 1},
        {"type": "like", "left": 1, "right": 1},
        {"type": "not"},
        {"type": "all_of", "conditions": "x"},
        {"type": "step_status", "step_ref": "nobody", "status": "completed"},
        {"type": "step_status", "step_ref": "b", "status": "done"},
        {"type": "regex", "left": "x", "right": "("},
        {"type": "regex", "left": "x", "right": "(?=x)"},
        {"type": "eq", "left": {"step_ref": "nobody"}, "right": 1},
        "yes",
        [],
    ],
    ids=json.dumps,
)
def test_a_bad_condition_is_refused_with_its_path(api: Api, condition: Any) -> None:
    body = {
        "project_id": api.project,
        "name": "w",
        "steps": [job("b"), job("a", after="b", condition=condition)],
    }
    response = api.request("POST", "/v1/workflows", body)
    assert response.status_code == 422, response.text
    details = response.json()["error"]["details"]
    assert all(line.startswith("steps[1].condition") for line in details), details


def test_a_regex_is_linear(api: Api) -> None:
    condition = cond("regex", "{{ payload.text }}", "^(a+)+$")
    run_id = api.start(job("a", condition=condition), payload={"text": "a" * 5000 + "!"})
    api.until(run_id, "completed")
    assert api.shown(run_id) == {"a": "skipped"}


def test_output_transform_is_jmespath(api: Api) -> None:
    run_id = api.start(
        job(
            "a",
            "value",
            payload={"value": {"items": [{"n": 1}, {"n": 2}]}},
            output_transform="items[].n",
        ),
        job("b", "echo", after="a"),
    )
    api.until(run_id, "completed")
    assert api.step(run_id, "a")["output"] == [1, 2]
    assert api.step(run_id, "b")["output"]["parent_outputs"] == {"a": [1, 2]}


def test_a_transform_that_finds_nothing_gives_no_output(api: Api) -> None:
    run_id = api.start(job("a", output_transform="nothing.here"))
    api.until(run_id, "completed")
    assert "output" not in api.step(run_id, "a")


def test_a_transform_that_cannot_be_applied_fails_the_step_finally(
    api: Api, jobs: JobServer
) -> None:
    endpoint = jobs.endpoint(ok({"n": "x"}))
    run_id = api.start(job("a", api.job(endpoint, max_attempts=3), output_transform="abs(n)"))
    api.until(run_id, "failed")
    assert endpoint.attempts == [1]
    assert api.step(run_id, "a")["error"]


def test_bad_jmespath_is_refused(api: Api) -> None:
    body = {"project_id": api.project, "name": "w", "steps": [job("a", output_transform="a[")]}
    answer = api.post("/v1/workflows", body, 422)
    assert any("steps[0].output_transform" in line for line in answer["error"]["details"])


def test_any_json_is_an_output(api: Api) -> None:
    for value in (0, 1.5, "", "x", False, [], {}, [None], {"a": None}):
        run_id = api.start(job("a", "value", payload={"value": value}))
        api.until(run_id, "completed")
        assert api.step(run_id, "a")["output"] == value


def test_a_payload_over_a_mebibyte_is_refused(api: Api) -> None:
    workflow = api.workflow(approval("a"))
    fits = {"x": "y" * (MIB - 20)}
    run_id = api.trigger(workflow, fits)
    assert api.run(run_id)["payload"] == fits
    body = {"payload": {"x": "y" * (MIB + 1)}}
    response = api.request("POST", f"/v1/workflows/{workflow}/trigger", body)
    assert response.status_code in {413, 422}
    body = {"payload": {"x": "y" * (2 * MIB)}}
    response = api.request("POST", f"/v1/workflows/{workflow}/trigger", body)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "payload_too_large"


@pytest.mark.parametrize(
    "tags",
    [
        {f"k{n}": "v" for n in range(21)},
        {"k" * 65: "v"},
        {"k": "v" * 257},
        {"k": 5},
        ["k"],
        {"": "v"},
    ],
)
def test_tags_out_of_bounds_are_refused(api: Api, tags: Any) -> None:
    workflow = api.workflow(approval("a"))
    answer = api.post(f"/v1/workflows/{workflow}/trigger", {"tags": tags}, 422)
    assert any("tags" in line for line in answer["error"]["details"])


def test_tags_at_their_bounds_are_taken(api: Api) -> None:
    tags = {f"{n:02}" + "k" * 62: "v" * 256 for n in range(20)}
    workflow = api.workflow(approval("a"))
    assert api.run(api.trigger(workflow, tags=tags))["tags"] == tags


@pytest.mark.parametrize("ref", ["", "a b", "a.b", "é", "x" * 129, "a/b", "a\n"])
def test_a_step_ref_has_its_form(api: Api, ref: str) -> None:
    body = {"project_id": api.project, "name": "w", "steps": [job(ref)]}
    answer = api.post("/v1/workflows", body, 422)
    assert any(line.startswith("steps[0].step_ref") for line in answer["error"]["details"])


def test_a_step_ref_of_128_characters_works(api: Api) -> None:
    ref = "A-z_0" + "x" * 123
    run_id = api.start(job(ref), approval("b", ref))
    api.until_step(run_id, "b", "waiting/approval")
    api.on(run_id, ref, "retry", expect=200)


@pytest.mark.parametrize("fields", [{"name": "n" * 256}, {"description": "d" * 2001}])
def test_long_texts_are_refused(api: Api, fields: Json) -> None:
    body = {"project_id": api.project, "name": "w", "steps": [job("a")], **fields}
    answer = api.post("/v1/workflows", body, 422)
    assert any(next(iter(fields)) in line for line in answer["error"]["details"])


def test_all_problems_of_a_definition_are_listed_at_once_with_their_paths(api: Api) -> None:
    steps: list[Json] = [
        {"step_ref": "a", "job_id": "noop", "depends_on": ["a", "zzz"]},
        {"step_ref": "a", "job_id": "nobody"},
        {"step_ref": "b", "step_type": "sleep"},
        {"step_ref": "c", "step_type": "approval", "job_id": "noop"},
        {"step_ref": "d", "step_type": "dance"},
        {"step_ref": "e", "job_id": "noop", "surprise": 1},
        {"step_ref": "x", "job_id": "noop", "depends_on": ["y"]},
        {"step_ref": "y", "job_id": "noop", "depends_on": ["z"]},
        {"step_ref": "z", "job_id": "noop", "depends_on": ["x"]},
    ]
    body = {"project_id": api.project, "name": "w", "steps": steps, "cron": "not a cron"}
    details = api.post("/v1/workflows", body, 422)["error"]["details"]
    text = "\n".join(details)
    for path in (
        "steps[0].depends_on",
        'unknown step "zzz"',
        "steps[1].step_ref",
        "steps[1].job_id",
        "steps[2].sleep_duration_secs",
        "steps[3].job_id",
        "steps[4]",
        "steps[5].surprise",
        "cron",
    ):
        assert path in text, path
    assert "x → y → z → x" in text or "x → z → y → x" in text, text


def test_ten_thousand_steps_are_taken_and_one_more_is_not(api: Api) -> None:
    steps = [approval("s0"), *(job(f"s{n}", after="s0") for n in range(1, 10_000))]
    workflow = api.workflow(*steps)
    run_id = api.trigger(workflow)
    api.cancel(run_id)
    assert len(api.steps(run_id)) == 10_000
    body = {"project_id": api.project, "name": "w", "steps": [*steps, job("more")]}
    answer = api.post("/v1/workflows", body, 422)
    assert any("steps" in line for line in answer["error"]["details"])


def test_an_input_over_64_kib_is_shown_as_size_and_preview(api: Api) -> None:
    run_id = api.start(job("a"), payload={"x": "y" * 100_000})
    api.until(run_id, "completed")
    [record] = api.attempts(run_id, "a")
    assert len(json.dumps(record["payload"])) < 65_536
    assert "size" in json.dumps(record["payload"]) or "bytes" in json.dumps(record["payload"])


def test_an_attempts_input_over_8_mib_fails_the_step_finally(api: Api, jobs: JobServer) -> None:
    big = api.job(jobs.endpoint(ok("y" * (MIB - 100))))
    steps = [job(f"s{n}", big) for n in range(9)]
    refs = [step["step_ref"] for step in steps]
    run_id = api.start(*steps, job("join", after=refs))
    api.until(run_id, "failed", within_secs=20)
    assert "8388608" in api.step(run_id, "join")["error"]


@pytest.mark.parametrize(
    "fields",
    [
        {"timeout_secs": -1},
        {"max_parallel_steps": -1},
        {"max_concurrent_runs": 1.5},
        {"max_parallel_steps": "2"},
        {"timeout_secs": True},
    ],
    ids=json.dumps,
)
def test_a_limit_out_of_bounds_is_refused(api: Api, fields: Json) -> None:
    body = {"project_id": api.project, "name": "w", "steps": [job("a")], **fields}
    answer = api.post("/v1/workflows", body, 422)
    assert any(next(iter(fields)) in line for line in answer["error"]["details"])


@pytest.mark.parametrize(
    "raw",
    [b"{", b"", b"[]", b'"x"', b'{"payload": NaN}', b"\xff", b'{"payload": 1e999}', b"[" * 90_000],
)
def test_a_trigger_with_a_broken_body_is_refused_or_started_but_never_500(
    api: Api, raw: bytes
) -> None:
    workflow = api.workflow(approval("a"))
    response = api.raw("POST", f"/v1/workflows/{workflow}/trigger", raw)
    assert response.status_code in {201, 400, 413, 422}, response.text
    assert (response.status_code == 201) == (raw == b"")


def test_payload_strings_with_every_odd_character_survive(api: Api) -> None:
    text = '\u0000\u001f"\\/\u2028\U0001f600\ufffe'
    assert echoed(api, {"t": text}, {"u": "<{{ payload.t }}>"}) == {
        "t": text,
        "u": f"<{text}>",
        "parent_outputs": {},
    }


@pytest.mark.parametrize(
    ("depth", "error"),
    [
        (500, None),
        (501, "output has arrays and objects nested more than 500 deep; it cannot be kept"),
        (970, "output has arrays and objects nested more than 500 deep; it cannot be kept"),
        (100_000, "output has arrays and objects nested more than 500 deep; it cannot be kept"),
    ],
)
def test_an_answer_that_is_nested_deep_is_taken_or_fails_its_step(
    api: Api, jobs: JobServer, depth: int, error: str | None
) -> None:
    """What is taken can be given to the next step; and the job is called once."""
    endpoint, following = jobs.endpoint(Answer(body=b"[" * depth + b"]" * depth)), jobs.endpoint()
    run_id = api.start(
        job("a", api.job(endpoint, max_attempts=5)),
        job("b", api.job(following), after="a", payload={"v": "{{ steps.a.output }}"}),
    )
    api.until(run_id, "completed" if error is None else "failed")
    if error is None:
        (call,) = following.calls
        assert call.body["v"] == api.step(run_id, "a")["output"]
    else:
        assert api.step(run_id, "a")["error"].startswith(error)
    assert len(endpoint.calls) == 1

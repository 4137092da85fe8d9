from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given, strategies as st

from pilotage.http.bodies import DEFINITION_LIMIT, LIMIT, Fields, decode_json
from pilotage.http.problems import HttpError
from tests.http.conftest import Server, approval, define, job, trigger

JSON = {"Content-Type": "application/json"}


async def a_parked_run(client: httpx.AsyncClient) -> str:
    await define(client, "w", [approval("gate")])
    return str((await trigger(client, "w"))["id"])


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"", {}),
        (b"", JSON),
        (b"{}", JSON),
        (b"{}", {}),
        (b"null", JSON),
        (b' {"unknown": [1, {"a": null}]} ', JSON),
        (b"{}", {"Content-Type": "application/json; charset=utf-8"}),
        (b"{}", {"Content-Type": "application/vnd.api+json"}),
    ],
)
async def test_bodies_of_actions_are_optional(
    client: httpx.AsyncClient, content: bytes, headers: dict[str, str]
) -> None:
    run_id = await a_parked_run(client)
    for verb in ("pause", "resume", "steps/gate/skip"):
        answer = await client.post(
            f"/v1/workflow-runs/{run_id}/{verb}", content=content, headers=headers
        )
        assert answer.status_code == 204, answer.text


BROKEN: list[tuple[bytes, int]] = [
    (b'{"reason":', 400),
    (b"{} trailing", 400),
    (b"reason=x", 400),
    (b"\xff\xfe", 400),
    (b'{"reason": "\xff"}', 400),
    (b'{"reason": "\xed\xa0\x80"}', 400),
    (b'{"a": 1, "a": 2}', 400),
    (b'{"x": {"a": ":\\"", "b": [{"c": 1, "c": 1}]}}', 400),
    (b'{"x": ' + b"[" * 100_000, 400),
    (b'{"x": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", 400),
    (b"NaN", 400),
    (b'{"x": ' + b"[" * 150 + b"]" * 150 + b"}", 422),
    (b'{"x": 123456789012345678901234567890}', 422),
    (b'{"x": -9223372036854775809}', 422),
    (b"[]", 422),
    (b'"text"', 422),
    (b"7", 422),
    (b'{"reason": 5}', 422),
    (b'{"reason": "a\\u0000b"}', 422),
    (b'{"reason": "' + b"x" * 2001 + b'"}', 422),
]


@pytest.mark.parametrize(("content", "status"), BROKEN, ids=lambda v: repr(v)[:30])
async def test_a_broken_body_is_refused_in_words(
    client: httpx.AsyncClient, content: bytes, status: int
) -> None:
    run_id = await a_parked_run(client)
    path = f"/v1/workflow-runs/{run_id}/steps/gate/skip"
    answer = await client.post(path, content=content, headers=JSON)
    assert answer.status_code == status, answer.text
    assert answer.json()["message"]
    run = (await client.get(f"/v1/workflow-runs/{run_id}")).json()
    assert run["status"] == "running"


async def test_numbers_that_json_cannot_carry_are_refused(client: httpx.AsyncClient) -> None:
    await define(client, "w", [job("a")])
    for number in ("1e999", "-1e400", "1" * 400):
        answer = await client.post(
            "/v1/workflows/w/trigger", content=b'{"payload": %s}' % number.encode(), headers=JSON
        )
        assert answer.status_code in {400, 422}, number


async def test_a_payload_may_be_any_json(server: Server, client: httpx.AsyncClient) -> None:
    await define(client, "w", [job("a")])
    for payload in ({"a": {"b": [1, 2.5, True, "é\u0000", {"": 0}]}}, 5, "text", [1], False):
        run = await trigger(client, "w", payload=payload)
        assert run["payload"] == payload


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
     "application/json; charset=latin-1", "application/jsonx", "x"],
)  # fmt: skip
async def test_another_content_type_is_415(client: httpx.AsyncClient, content_type: str) -> None:
    answer = await client.post(
        "/v1/workflows", content=b"{}", headers={"Content-Type": content_type}
    )
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "unsupported_media_type"


async def test_a_compressed_body_is_415(client: httpx.AsyncClient) -> None:
    answer = await client.post(
        "/v1/workflows", content=b"x", headers={**JSON, "Content-Encoding": "gzip"}
    )
    assert answer.status_code == 415


async def test_a_body_beyond_the_bound_is_413(client: httpx.AsyncClient) -> None:
    await define(client, "w", [job("a")])
    for path, limit in (("/v1/workflows/w/trigger", LIMIT), ("/v1/workflows", DEFINITION_LIMIT)):
        answer = await client.post(path, content=b" " * (limit + 1), headers=JSON)
        assert answer.status_code == 413, path
        assert answer.json()["error"]["code"] == "payload_too_large"

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 65_536

    answer = await client.post("/v1/workflows/w/trigger", content=chunks(), headers=JSON)
    assert answer.status_code == 413


async def test_a_payload_at_the_bound_is_taken(client: httpx.AsyncClient) -> None:
    await define(client, "w", [approval("gate")])
    fits = json.dumps({"payload": "x" * ((1 << 20) - 2)})
    answer = await client.post("/v1/workflows/w/trigger", content=fits, headers=JSON)
    assert answer.status_code == 201
    beyond = json.dumps({"payload": "x" * ((1 << 20) - 1)})
    answer = await client.post("/v1/workflows/w/trigger", content=beyond, headers=JSON)
    assert answer.status_code == 422


async def test_a_client_that_goes_away_in_the_middle_harms_nobody(
    server: Server, client: httpx.AsyncClient
) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    key = client.headers["authorization"]
    head = f"POST /v1/workflows HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode())
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await client.get("/v1/workflows")).status_code == 200


async def test_unknown_fields_of_definitions_are_refused_all_at_once(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.post(
        "/v1/workflows",
        json={
            "slug": "w",
            "colour": "red",
            "steps": [
                {"step_ref": "a", "job_id": "echo", "depends_on": ["b"]},
                {"step_ref": "b", "job_id": "nobody", "depends_on": ["a"], "size": 3},
            ],
        },
    )
    assert answer.status_code == 422
    told = "\n".join(answer.json()["error"]["details"])
    for part in ("colour", "steps[1].job_id", "steps[1].size", "a → b → a"):
        assert part in told


# --- the decoder alone ---------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)  # fmt: skip


@given(json_values, st.booleans(), st.sampled_from([None, 1]))
def test_whatever_is_json_is_decoded_as_it_is(
    value: Any, ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        return
    assert decode_json(encoded) == (value, [])


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_decoded_or_refused(data: bytes) -> None:
    with contextlib.suppress(HttpError):
        decode_json(data)


@given(st.dictionaries(st.text(), json_values, min_size=1))
def test_a_key_that_is_there_twice_is_found(value: dict[str, Any]) -> None:
    key, twice = next(iter(value.items()))
    inner = json.dumps(value)[:-1] + f", {json.dumps(key)}: {json.dumps(twice)}}}"
    with pytest.raises(HttpError, match="twice"):
        decode_json(f'{{"outer": [{inner}]}}'.encode())


def test_fields_collect_every_problem() -> None:
    given = {"a": 1, "b": "x", "c": [1], "d": "y", "e": True, "f": float("inf")}
    fields = Fields(given, [])
    fields.text("a")
    fields.number("b", 0, 1)
    fields.texts("c", 1, 2, lambda _: None)
    fields.flag("d")
    fields.number("e", 0, 1)
    fields.number("f", 0, 1)
    fields.text("g", required=True)
    assert [p.partition(":")[0] for p in fields.problems] == [
        "a", "b", "c[0]", "d", "e", "f", "g",
    ]  # fmt: skip

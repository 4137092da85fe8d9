from __future__ import annotations

import httpx
import pytest

from pilotage.http.preferences import preferred
from tests.http.conftest import approval, define, trigger


@pytest.mark.parametrize(
    ("header", "value"),
    [
        (b"return=representation", b"representation"),
        (b'return="representation"', b"representation"),
        (b'return="rep\\resentation"', b"representation"),
        (b"Return = Representation", b"representation"),
        (b"respond-async, wait=10, return=representation; foo=bar", b"representation"),
        (b'x="a,return=minimal", return=representation', b"representation"),
        (b"return=minimal, return=representation", b"minimal"),
        (b"return", b""),
        (b'return=""', b""),
        (b",,return=representation,", b"representation"),
        (b"xreturn=representation", None),
        (b"return=representation x", None),
        (b'x="return=representation', None),
        (b'x="a\\",return=representation"', None),
        (b"foo; return=representation", None),
        (b"", None),
    ],
)
def test_a_preference_is_read_by_the_letter(header: bytes, value: bytes | None) -> None:
    assert preferred(header, b"return") == value


async def test_only_who_prefers_it_is_shown_the_run(client: httpx.AsyncClient) -> None:
    await define(client, "w", [approval("gate")])
    path = f"/v1/workflow-runs/{(await trigger(client, 'w'))['id']}/pause"
    for prefer, status in (
        (["return=representation"], 200),
        (['return="representation"'], 200),
        (["respond-async", "return=representation"], 200),
        (["return=representation", "respond-async"], 200),
        (["xreturn=representation"], 204),
        (["return=minimal"], 204),
    ):
        headers = [("Prefer", value) for value in prefer]
        answer = await client.post(path, headers=headers)
        assert answer.status_code == status, prefer
        assert ("preference-applied" in answer.headers) == (status == 200), prefer


@pytest.mark.parametrize("verb", ["pin", "pause", "steps/gate/approve"])
async def test_a_repeat_says_that_the_preference_was_applied(
    client: httpx.AsyncClient, verb: str
) -> None:
    await define(client, "w", [approval("gate")])
    path = f"/v1/workflow-runs/{(await trigger(client, 'w'))['id']}/{verb}"
    headers = {"Prefer": "return=representation", "Idempotency-Key": "k"}
    first, again = [await client.post(path, headers=headers) for _ in range(2)]
    assert again.headers["idempotency-replayed"] == "true"
    assert (again.status_code, again.content) == (first.status_code, first.content)
    applied = "return=representation"
    assert first.headers["preference-applied"] == applied
    assert again.headers["preference-applied"] == applied
    # the first answer again, whatever the repeat prefers
    plain = await client.post(path, headers={"Idempotency-Key": "k"})
    assert plain.content == first.content
    assert "preference-applied" not in plain.headers

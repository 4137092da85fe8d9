"""Damaged and newer records: each is refused alone, by name, and takes no other with it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec
import pytest

from pilotage.actors.errors import ConflictError
from pilotage.actors.event_hub import EventHub
from pilotage.actors.idempotency import Idempotency, recall
from pilotage.actors.kernel import SystemClock
from pilotage.actors.messages import Answer
from pilotage.actors.principal import ADMIN
from pilotage.actors.store_room import StoreRoom
from pilotage.persistence.codec import SnapshotCorruptError, SnapshotVersionError
from tests.unit.catalog.conftest import Kit


def flipped(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 8]) + data[-2:]


def newer(data: bytes) -> bytes:
    return b"\x09" + data[1:]


def short(data: bytes) -> bytes:
    return data[: len(data) // 2]


def nothing(_: bytes) -> bytes:
    return b""


Spoil = Callable[[bytes], bytes]
CASES: list[tuple[str, Spoil]] = [
    ("wrong checksum", flipped),
    ("wrong checksum", short),
    ("version 9", newer),
    ("0 bytes", nothing),
]


async def spoil(kit: Kit, kind: str, record_id: str, how: Spoil) -> None:
    record = await kit.store.get_record(kind, record_id)
    assert record is not None
    spoiled = msgspec.structs.replace(record, data=how(record.data), revision=record.revision + 1)
    await kit.store.put_record(spoiled, kit.fence)


async def reborn(kit: Kit) -> Kit:
    """The same store in a new process: nothing is cached."""
    other = Kit(kit.store.server)
    await other.store.open()
    other.fence = kit.fence
    return other


async def test_a_damaged_workflow_is_refused_alone(kit: Kit) -> None:
    await kit.job()
    flows = [await kit.workflow(f"w{n}") for n in range(len(CASES) + 1)]
    for (_, how), flow in zip(CASES, flows, strict=False):
        await spoil(kit, "workflow", flow.id, how)
    other = await reborn(kit)
    for (words, _), flow in zip(CASES, flows, strict=False):
        with pytest.raises(ConflictError, match=words):
            await other.catalog.workflow("p", flow.slug)
    page, _ = await other.catalog.list_workflows("p", 50)
    assert [flow.id for flow in page] == [flows[-1].id]
    assert [flow.id async for flow in other.catalog.all_workflows()] == [flows[-1].id]


async def test_a_damaged_version_and_a_damaged_job_are_refused_alone(kit: Kit) -> None:
    job = await kit.job("j")
    flow, sound = await kit.workflow("w"), await kit.workflow("sound")
    await spoil(kit, "version", flow.version_id, flipped)
    other = await reborn(kit)
    with pytest.raises(ConflictError, match="version cannot be read"):
        await other.catalog.graph(flow.version_id)
    assert (await other.catalog.graph(sound.version_id)).size == 1
    await spoil(kit, "job", job.id, flipped)
    other = await reborn(kit)
    with pytest.raises(ConflictError, match="job cannot be read"):
        await other.catalog.job("p", "j")
    assert (await other.catalog.workflow("p", "w")).id == flow.id


async def test_a_damaged_key_opens_nothing_and_locks_nobody_out(
    kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    made = [
        await kit.catalog.keys.create(
            name=f"k{n}", project_id="p", scopes=["workflows:read"], by=ADMIN
        )
        for n in range(3)
    ]
    await spoil(kit, "api_key", made[0][0].id, flipped)
    await spoil(kit, "api_key", made[1][0].id, newer)
    keys = (await reborn(kit)).catalog.keys
    with caplog.at_level(logging.ERROR):
        found = [await keys.authenticate(secret) for _, secret in made]
    assert [one is not None for one in found] == [False, False, True]
    assert made[0][0].id in caplog.text
    assert not any(secret in caplog.text for _, secret in made)


def test_a_damaged_idempotency_record_is_never_taken_for_an_answer() -> None:
    key = Idempotency(key="POST x", request_hash="h")
    data = key.record(status=201, reference="r", body=b"{}").data
    assert recall(data).body == b"{}"
    for how in (flipped, short):
        with pytest.raises(SnapshotCorruptError):
            recall(how(data))
    with pytest.raises(SnapshotVersionError):
        recall(newer(data))


async def test_a_damaged_kept_event_does_not_stand_before_the_others(kit: Kit) -> None:
    given: list[object] = []

    async def deliver(run_id: str, command: object) -> Answer | None:
        given.append(command)
        return None

    hub = EventHub(kit.store, SystemClock(), lambda: kit.fence, deliver, StoreRoom(kit.store))
    now = SystemClock().now_ms()
    await kit.store.buffer_event("p", "k", "e0", b"\x01damaged", 60, kit.fence)
    await hub.send("p", "k", b"7", event_id="e1", actor="a", buffer_secs=60, now_ms=now)
    await hub.take_early("p", "k", "run", 0, 1)
    assert [getattr(command, "payload", None) for command in given] == [b"7"]

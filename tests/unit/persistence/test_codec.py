"""The codec: what goes in comes out, and nothing that is not whole comes out at all."""

from __future__ import annotations

import random
import re
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

import pilotage
from pilotage.actors.catalog_model import Workflow
from pilotage.persistence import codec, upgrades
from pilotage.runtime.effects import EmitEvent
from pilotage.runtime.state import RunHead, RunVitals, StepState, chunked
from tests.golden import snapshots
from tests.golden.snapshots.samples import (
    DECODERS,
    HEAD_FULL,
    HEAD_PLAIN,
    SAMPLES,
    STEP_FULL,
    VITALS_FULL,
    WORKFLOW,
    decoded,
    encoded,
    kind,
    shown,
)

DEFINITION: Workflow = SAMPLES["definition-workflow"]
GOLDEN = sorted(Path(snapshots.__file__).parent.glob("v*/*.bin"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_any_version_has_written_can_be_read(path: Path) -> None:
    expected = msgspec.json.decode(path.with_suffix(".json").read_bytes())
    assert shown(decoded(path.stem, path.read_bytes())) == expected


def test_the_present_version_has_golden_files_of_everything() -> None:
    folder = Path(snapshots.__file__).parent / f"v{codec.SCHEMA_VERSION}"
    assert {path.stem for path in folder.glob("*.bin")} >= set(SAMPLES)


def test_every_type_that_the_sources_read_back_has_a_golden_file() -> None:
    """One that is missing here is read from an old store for the first time by a user."""
    reads = re.compile(
        r"decode_(?:record|history|definition)\([^()]*, ?([A-Z]\w+)\)|as_type=([A-Z]\w+)"
    )
    folder = Path(pilotage.__file__).parent
    read = {
        one or other
        for path in folder.rglob("*.py")
        for one, other in reads.findall(path.read_text(encoding="utf-8"))
    }
    assert len(read) >= 8
    assert read <= {type(value).__name__ for value in SAMPLES.values()}


def test_every_kind_of_value_has_a_golden_file() -> None:
    kinds = {kind(name) for name in SAMPLES}
    assert kinds == set(DECODERS)
    assert len(kinds) == len(codec._NAMES)


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_come_back_equal(name: str) -> None:
    assert decoded(name, encoded(name, SAMPLES[name])) == SAMPLES[name]


INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
INT_FIELDS: dict[str, Any] = {
    field.name: INT64 if field.type is int else st.none() | INT64
    for field in msgspec.structs.fields(StepState)
    if field.type in {int, int | None}
}


@given(st.builds(StepState, **INT_FIELDS))
def test_every_step_state_comes_back_equal(step: StepState) -> None:
    assert codec.decode_step(codec.encode_step(step)) == step


@given(
    st.builds(
        RunVitals,
        seq=st.integers(0, 1 << 40),
        history_seq=st.integers(0, 1 << 40),
        error=st.none() | st.text(),
        expires_at_ms=st.none() | st.integers(0, 1 << 50),
        held=st.booleans(),
    )
)
def test_vitals_come_back_equal(vitals: RunVitals) -> None:
    assert codec.decode_vitals(codec.encode_vitals(vitals)) == vitals


@given(
    payload=st.none() | st.binary(max_size=2_000),
    tags=st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=5),
    outputs=st.lists(st.none() | st.binary(max_size=100), max_size=80),
)
def test_finished_runs_come_back_equal(
    payload: bytes | None, tags: dict[str, str], outputs: list[bytes | None]
) -> None:
    head = msgspec.structs.replace(HEAD_PLAIN, payload=payload, tags=tags)
    chunks = chunked([StepState(output=output) for output in outputs])
    blob = codec.encode_finished(head, VITALS_FULL, chunks)
    assert codec.decode_finished(blob) == (head, VITALS_FULL, chunks)
    assert codec.finished_head(blob) == codec.encode_head(head)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_flipped_bit_is_found_wherever_it_is(name: str) -> None:
    data = encoded(name, SAMPLES[name])
    for position in range(len(data)):
        spoiled = bytearray(data)
        spoiled[position] ^= 1 << position % 8
        with pytest.raises(codec.SnapshotError):
            decoded(name, bytes(spoiled))


@pytest.mark.parametrize("name", SAMPLES)
def test_a_value_cut_short_is_found(name: str) -> None:
    data = encoded(name, SAMPLES[name])
    for length in range(len(data)):
        with pytest.raises(codec.SnapshotCorruptError):
            decoded(name, data[:length])


@pytest.mark.parametrize("name", [name for name in SAMPLES if kind(name) in {"step", "head"}])
@pytest.mark.parametrize("other", ["vitals", "message", "step", "head", "finished"])
def test_one_kind_of_value_is_not_taken_for_another(name: str, other: str) -> None:
    if kind(name) == other:
        return
    with pytest.raises(codec.SnapshotCorruptError, match="wrong checksum"):
        DECODERS[other](encoded(name, SAMPLES[name]))


@pytest.mark.parametrize("name", SAMPLES)
def test_every_kind_of_value_is_refused_in_a_newer_version(name: str) -> None:
    data = encoded(name, SAMPLES[name])
    with pytest.raises(codec.SnapshotVersionError, match="schema version 2"):
        decoded(name, bytes([codec.SCHEMA_VERSION + 1]) + data[1:])


def test_a_newer_version_is_refused_by_name() -> None:
    newer = bytes([codec.SCHEMA_VERSION + 1]) + codec.encode_step(STEP_FULL)[1:]
    with pytest.raises(codec.SnapshotVersionError, match=r"version 2, .* reads up to 1") as e:
        codec.decode_step(newer)
    assert (e.value.what, e.value.version) == ("step state", 2)
    newer = bytes([9]) + codec.encode_finished(HEAD_PLAIN, RunVitals(), ())[1:]
    with pytest.raises(codec.SnapshotVersionError, match="start the newer version"):
        codec.finished_head(newer)


def sealed(kind_number: int, body: bytes) -> bytes:
    return b"\x01" + zlib.crc32(body, kind_number).to_bytes(4, "big") + body


@pytest.mark.parametrize(
    ("data", "decode"),
    [
        (sealed(1, msgspec.msgpack.encode({"id": 7})), codec.decode_head),
        (sealed(2, msgspec.msgpack.encode({"status": "dancing"})), codec.decode_vitals),
        (sealed(3, msgspec.msgpack.encode(["no status"])), codec.decode_step),
        (sealed(4, b"not compressed"), codec.decode_finished),
        (sealed(4, zlib.compress(b"short")), codec.decode_finished),
        (sealed(5, msgspec.msgpack.encode({"type": "Nothing"})), codec.decode_message),
    ],
)
def test_a_whole_value_of_wrong_content_is_refused(data: bytes, decode: Any) -> None:
    with pytest.raises(codec.SnapshotCorruptError, match="is damaged"):
        decode(data)


def test_older_values_are_upgraded_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """From schema 1 over 2 to 3: what each version changed, in order, and each value alone."""
    old = codec.encode_vitals(VITALS_FULL), codec.encode_step(STEP_FULL)
    finished = codec.encode_finished(HEAD_FULL, VITALS_FULL, chunked([STEP_FULL, StepState()]))
    workflow = codec.encode_definition(DEFINITION)
    version, table = codec.SCHEMA_VERSION, upgrades.UPGRADES
    monkeypatch.setattr(codec, "SCHEMA_VERSION", version + 2)
    monkeypatch.setattr(codec, "_VERSION", bytes([version + 2]))
    monkeypatch.setitem(table, (version, "RunVitals"), lambda raw: raw | {"error": "one"})
    monkeypatch.setitem(
        table, (version + 1, "RunVitals"), lambda raw: raw | {"error": raw["error"] + ", two"}
    )
    monkeypatch.setitem(table, (version + 1, "StepState"), lambda raw: [raw[0], *raw[1:2], 3])
    monkeypatch.setitem(
        table, (version, "Workflow"), lambda raw: raw | {"name": raw["name"].upper()}
    )
    changed = msgspec.structs.replace(VITALS_FULL, error="one, two")
    step = StepState(status=STEP_FULL.status, wait=STEP_FULL.wait, attempt=3)
    assert codec.decode_vitals(old[0]) == changed
    assert codec.decode_step(old[1]) == step
    head, vitals, chunks = codec.decode_finished(finished)
    assert (head, vitals) == (HEAD_FULL, changed)
    assert chunks == ((step, StepState(attempt=3)),)
    assert codec.decode_definition(workflow, Workflow).name == DEFINITION.name.upper()
    new = codec.encode_vitals(VITALS_FULL)
    assert (old[0][0], new[0]) == (version, version + 2)
    assert codec.decode_vitals(new) == VITALS_FULL


def test_what_cannot_be_upgraded_is_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    old = codec.encode_vitals(VITALS_FULL)
    monkeypatch.setattr(codec, "SCHEMA_VERSION", codec.SCHEMA_VERSION + 1)
    monkeypatch.setitem(upgrades.UPGRADES, (1, "RunVitals"), lambda raw: raw["what is not there"])
    with pytest.raises(codec.SnapshotCorruptError, match="of schema version 1 cannot be upgraded"):
        codec.decode_vitals(old)


def test_a_record_of_another_type_is_refused() -> None:
    with pytest.raises(codec.SnapshotCorruptError, match="does not fit its type"):
        codec.decode_record(codec.encode_record(WORKFLOW), RunHead)
    with pytest.raises(codec.SnapshotCorruptError):
        codec.decode_history(codec.encode_history(EmitEvent(event_key="x")), RunHead)


def test_fields_that_a_later_version_adds_are_ignored_by_this_one() -> None:
    """A rolling upgrade may go back: the same schema version, a field more."""
    longer = [*msgspec.msgpack.decode(codec.encode_step(STEP_FULL)[5:]), "new", 12]
    assert codec.decode_step(sealed(3, msgspec.msgpack.encode(longer))) == STEP_FULL
    more = {**msgspec.msgpack.decode(codec.encode_vitals(VITALS_FULL)[5:]), "new": 1}
    assert codec.decode_vitals(sealed(2, msgspec.msgpack.encode(more))) == VITALS_FULL


def test_steps_of_an_older_version_lack_the_later_fields() -> None:
    shorter = msgspec.msgpack.decode(codec.encode_step(STEP_FULL)[5:])[:5]
    step = codec.decode_step(sealed(3, msgspec.msgpack.encode(shorter)))
    assert step == StepState(
        status=STEP_FULL.status,
        wait=STEP_FULL.wait,
        attempt=12,
        budget_start=9,
        output=STEP_FULL.output,
    )


@pytest.mark.parametrize("size", [10, 3_000, 200_000])
def test_the_head_is_read_from_the_first_bytes_of_a_finished_run(size: int) -> None:
    dice = random.Random(size)
    head = msgspec.structs.replace(HEAD_FULL, payload=dice.randbytes(size))
    steps = chunked([StepState(output=dice.randbytes(2_000)) for _ in range(100)])
    blob = codec.encode_finished(head, VITALS_FULL, steps)
    found = [codec.finished_head(blob[:length]) for length in range(0, len(blob), 997)]
    whole = codec.encode_head(head)
    assert set(found) == {None, whole}
    assert found.index(whole) * 997 < size + 2_500
    assert None not in found[found.index(whole) :]


def test_a_damaged_beginning_is_found() -> None:
    blob = codec.encode_finished(HEAD_FULL, VITALS_FULL, ())
    with pytest.raises(codec.SnapshotCorruptError):
        codec.finished_head(blob[:5] + b"\xff\xff" + blob[7:])
    with pytest.raises(codec.SnapshotCorruptError):
        codec.finished_head(b"\x00" + blob[1:])


def test_a_finished_run_is_smaller_than_its_parts() -> None:
    steps = chunked([STEP_FULL] * 5)
    parts = codec.encode_head(HEAD_FULL), codec.encode_vitals(VITALS_FULL)
    size = sum(map(len, parts)) + 5 * len(codec.encode_step(STEP_FULL))
    assert len(codec.encode_finished(HEAD_FULL, VITALS_FULL, steps)) < 0.7 * size


def test_the_head_of_a_damaged_finished_run_is_salvaged_if_it_is_whole() -> None:
    steps = chunked([StepState(output=random.Random(n).randbytes(50)) for n in range(40)])
    blob = codec.encode_finished(HEAD_FULL, VITALS_FULL, steps)
    head = codec.encode_head(HEAD_FULL)
    assert codec.salvaged_head(blob) == head
    assert codec.salvaged_head(blob[:-1] + b"?") == head
    assert codec.salvaged_head(blob[: len(blob) // 2]) == head
    assert codec.salvaged_head(blob[:20]) is None
    assert codec.salvaged_head(b"") is None
    assert codec.salvaged_head(blob[:5] + b"no zlib stream") is None

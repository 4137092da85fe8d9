from __future__ import annotations

import json
from typing import Any

import pytest

from pilotage.runtime.validation import ParsedTrigger, parse_trigger
from tests.support.definitions import problems_of

STEPS = frozenset({"a", "b", "c"})


def problems(raw: Any) -> list[str]:
    return problems_of(lambda: parse_trigger(raw, STEPS))


@pytest.mark.parametrize("raw", [None, {}, {"payload": None, "tags": None, "delay_secs": None}])
def test_an_empty_body_is_a_manual_run_without_payload(raw: Any) -> None:
    found = parse_trigger(raw, STEPS)
    assert found == ParsedTrigger()
    assert found.triggered_by == "manual"
    assert not found.has_payload


def test_every_field_of_a_trigger_is_taken() -> None:
    found = parse_trigger(
        {
            "payload": {"order": [1, "\0", None]},
            "tags": {"a": "b"},
            "triggered_by": "nightly",
            "step_overrides": [
                {"step_ref": "a", "enabled": False},
                {"step_ref": "b", "enabled": True},
                {"step_ref": "c", "enabled": False, "reason": "ignored"},
            ],
            "delay_secs": 1.5,
        },
        STEPS,
    )
    assert found == ParsedTrigger(
        payload={"order": [1, "\0", None]},
        tags={"a": "b"},
        triggered_by="nightly",
        disabled=frozenset({"a", "c"}),
        delay_secs=1.5,
    )


@pytest.mark.parametrize("payload", [0, False, "", [], {}, "text", 1.5, [None]])
def test_a_payload_is_any_json_value(payload: Any) -> None:
    found = parse_trigger({"payload": payload}, STEPS)
    assert found.has_payload
    assert found.payload is payload


def test_unknown_fields_are_ignored_as_on_all_actions() -> None:
    assert parse_trigger({"priority": 5, "Payload": 1}, STEPS) == ParsedTrigger()


DEEP: Any = json.loads("[" * 101 + "]" * 101)

CASES: list[tuple[Any, list[str]]] = [
        ([], ["body: must be an object, not an array"]),
        ("x", ["body: must be an object, not a string"]),
        ({"payload": {"a": float("nan")}}, ["payload.a: must be a finite number"]),
        ({"payload": ["\ud800", 2**64]},
         ["payload[1]: must be an integer of at most 64 bits",
          "payload[0]: must be valid Unicode, without lone surrogates"]),
        ({"payload": DEEP}, [f"payload{'[0]' * 100}: must not be nested more than 100 deep"]),
        ({"payload": {"x": "é" * (1 << 19)}},
         ["payload: must be at most 1048576 bytes of JSON, not 1048584"]),
        ({"tags": {"a": 1}}, ["tags.a: must be a string, not a number"]),
        ({"triggered_by": ""}, ["triggered_by: must not be empty"]),
        ({"triggered_by": "x" * 256},
         ["triggered_by: must be at most 255 characters long, not 256"]),
        ({"delay_secs": -1}, ["delay_secs: must be from 0 to 315,360,000 seconds, not -1"]),
        ({"step_overrides": {}}, ["step_overrides: must be an array, not an object"]),
        ({"step_overrides": [{}] * 10_001},
         ["step_overrides: must have at most 10000 items, not 10001"]),
        ({"step_overrides": [5, {}]},
         ["step_overrides[0]: must be an object, not a number",
          "step_overrides[1].step_ref: is required",
          "step_overrides[1].enabled: is required"]),
        ({"step_overrides": [{"step_ref": "x", "enabled": False},
                             {"step_ref": "a", "enabled": 1},
                             {"step_ref": "a", "enabled": False}]},
         ['step_overrides[0].step_ref: unknown step "x"',
          "step_overrides[1].enabled: must be true or false, not a number",
          'step_overrides[2].step_ref: "a" is listed twice']),
        ({"delay_secs": "1", "triggered_by": 5},
         ["delay_secs: must be a number of seconds, not a string",
          "triggered_by: must be a string, not a number"]),
    ]  # fmt: skip


@pytest.mark.parametrize(("raw", "expected"), CASES)
def test_what_is_wrong_with_a_trigger_is_listed(raw: Any, expected: list[str]) -> None:
    assert problems(raw) == expected


def test_a_payload_of_exactly_the_limit_is_taken() -> None:
    payload = "x" * ((1 << 20) - 2)
    assert parse_trigger({"payload": payload}, STEPS).payload == payload

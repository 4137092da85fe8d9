"""A template scope made of plain values, which counts how often each part is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any


class FakeScope:
    """What a step would see; `calls` counts the scope methods by name and ref."""

    def __init__(
        self,
        payload: Any = None,
        *,
        outputs: Mapping[str, Any] | None = None,
        statuses: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        run_id: str = "run-1",
    ) -> None:
        self._payload = payload
        self._outputs = dict(outputs or {})
        self._statuses = dict(statuses or {})
        self._tags = dict(tags or {})
        self._run_id = run_id
        self.calls: Counter[str] = Counter()

    def payload(self) -> Any:
        self.calls["payload"] += 1
        return self._payload

    def step_output(self, ref: str) -> Any:
        self.calls[f"output {ref}"] += 1
        return self._outputs[ref]

    def step_status(self, ref: str) -> str:
        self.calls[f"status {ref}"] += 1
        return self._statuses[ref]

    def run_id(self) -> str:
        self.calls["run_id"] += 1
        return self._run_id

    def tags(self) -> Mapping[str, str]:
        self.calls["tags"] += 1
        return self._tags

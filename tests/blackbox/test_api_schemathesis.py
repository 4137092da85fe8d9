"""Schemathesis against the running server: whatever it makes of our document, answers fit it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.blackbox.api import Api, approval, job

EXCLUDED = {
    # Its own word for a refusal of data that fits the schema. JSON Schema cannot say that a cursor
    # is one of ours, that a step's `depends_on` names another step, that a graph has no cycle, that
    # a time zone or a job exists, or which fields belong to which type of step.
    "positive_data_acceptance",
}
"""Checks that a correct server cannot pass. A refusal for too many failed authentications is not
among them: 429 is documented, and the limit of the server of these tests is out of reach."""
BUDGET_SECS = 35


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_every_answer_is_as_documented_whatever_is_asked(own_api: Api, tmp_path: Path) -> None:
    """Examples, boundaries, generated data and chains of calls; the same ones every time."""
    own_api.project = "acme"
    own_api.start(job("a"), approval("b", "a"))
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from schemathesis.cli import schemathesis; schemathesis()",
            "run",
            f"{own_api.server.url}/reference/openapi.json",
            # A key that no call can revoke, and the project that the examples name.
            *("--header", f"Authorization: Bearer {own_api.key}"),
            *("--header", f"X-Project-Id: {own_api.project}"),
            *("--exclude-checks", ",".join(EXCLUDED)),
            *("--phases", "examples,coverage,fuzzing,stateful"),
            *("--max-examples", "5", "--max-time", str(BUDGET_SECS)),
            *("--generation-deterministic", "--no-shrink", "--continue-on-failure"),
            *("--warnings", "off", "--no-color"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    assert "Tested: " in done.stdout
    assert "Stateful" in done.stdout

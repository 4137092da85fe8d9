"""Schemathesis against the running server: whatever it makes of our document, answers fit it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.blackbox.api import ROOT, Api, approval, job
from tests.blackbox.schemathesis_hooks import PROJECT

HOOKS = "tests.blackbox.schemathesis_hooks"

# "Data that fits the schema is accepted" holds for every operation but these: JSON Schema cannot
# say that `depends_on` names another step, that a graph has no cycle, that a job or a time zone
# exists, which fields belong to which type of step, or what a change is laid over. What else it
# cannot say is in `schemathesis_hooks`. A refusal for too many failed authentications is allowed:
# 429 is documented, and the limit of the server of these tests is out of reach.
CONFIG = """
[[operations]]
include-operation-id = ["create-workflow", "update-workflow", "update-job"]
checks.positive_data_acceptance.enabled = false

[[operations]]  # DELETE of a run cancels it: it is still there to be read
include-path-regex = "^/v1/workflow-runs/"
checks.use_after_free.enabled = false
"""
BUDGET_SECS = 35


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_every_answer_is_as_documented_whatever_is_asked(own_api: Api, tmp_path: Path) -> None:
    """Examples, boundaries, generated data and chains of calls; the same ones every time."""
    own_api.project = PROJECT
    own_api.start(job("a"), approval("b", "a"))
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from schemathesis.cli import schemathesis; schemathesis()",
            *("--config-file", str(config)),
            "run",
            f"{own_api.server.url}/reference/openapi.json",
            *("--header", f"Authorization: Bearer {own_api.key}"),  # no call can revoke it
            *("--phases", "examples,coverage,fuzzing,stateful"),
            *("--max-examples", "5", "--max-time", str(BUDGET_SECS)),
            *("--generation-deterministic", "--no-shrink", "--continue-on-failure"),
            *("--warnings", "off", "--no-color"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": HOOKS},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    assert "Tested: " in done.stdout
    assert "Stateful" in done.stdout

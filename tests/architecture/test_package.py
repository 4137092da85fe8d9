"""What it costs to import the package, and what it says of itself."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys

import pilotage
from tests.architecture.source import is_third_party

IMPORT_BUDGET_MS = 150

MEASURE = """
import json, sys, time
before = set(sys.modules)
started = time.process_time()
import pilotage
took_ms = (time.process_time() - started) * 1000
print(json.dumps([took_ms, sorted(set(sys.modules) - before)]))
"""


def test_importing_the_package_is_cheap_and_loads_nothing_else() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True
    ).stdout
    took_ms, loaded = json.loads(shown)
    assert took_ms < IMPORT_BUDGET_MS
    assert not [name for name in loaded if is_third_party(name)]


def test_the_version_is_that_of_the_installed_package() -> None:
    assert pilotage.__version__ == importlib.metadata.version("pilotage")

"""Pykka's own tests, from its published source distribution, run against the kernel.

They say what an actor and a future are to a user of Pykka. The distribution is fetched once by pip
into `.cache/`; it is never part of this repository.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from importlib.metadata import version
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
CACHE = REPOSITORY / ".cache"

WANTED_DIFFERENCES = {
    # A BaseException ends the one actor that raised it (with on_failure), not all of the process.
    "test_all_actors_are_stopped_on_base_exception[loop]",
    "test_base_exception_is_logged[loop]",
}
FLOOR_LOOP = 130
"""Of the 137 tests of a runtime in 4.5.0; a suite that collects nothing is no success."""
FLOOR_ALL = 280

ADD_RUNTIME = """
from loop_runtime import RUNTIME_ARGUMENTS, mocker
RUNTIMES["loop"] = pytest.param(Runtime(**RUNTIME_ARGUMENTS), id="loop")
"""


def fetch_sdist() -> Path:
    """The source distribution of the installed version, from the cache or by pip."""
    name = f"pykka-{version('pykka')}.tar.gz"
    cached = CACHE / name
    if cached.exists():
        return cached
    CACHE.mkdir(exist_ok=True)
    (CACHE / ".gitignore").write_text("*\n")
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        wanted = f"pykka=={version('pykka')}"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        # pip asks the package for its metadata, for which it builds it in isolation: some seconds.
        done = subprocess.run(
            [*pip, "--no-binary", "pykka", wanted],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        found = Path(folder) / name
        if done.returncode != 0 or not found.exists():
            reason = f"pip could not fetch the source of {wanted}:\n{done.stderr.strip()}"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
        found.replace(cached)
    return cached


def unpack_with_runtime(sdist: Path, folder: Path) -> Path:
    """Unpack Pykka's tests, with the kernel added to their runtimes."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    root = folder / sdist.name.removesuffix(".tar.gz")
    conftest = root / "tests" / "conftest.py"
    text = conftest.read_text()
    before = '\n\n@pytest.fixture(scope="session", params=RUNTIMES.values())'
    assert text.count(before) == 1, "Pykka's conftest.py has changed: add the runtime another way"
    conftest.write_text(text.replace(before, ADD_RUNTIME + before))
    (root / "pytest.ini").write_text("[pytest]\n")
    return root


def outcomes(report: Path) -> dict[str, str]:
    """Test name to 'passed', 'failed' or 'skipped'."""
    found: dict[str, str] = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        kinds = {child.tag for child in case}
        name = f"{case.get('classname')}::{case.get('name')}"
        if kinds & {"failure", "error"}:
            found[name] = "failed"
        else:
            found[name] = "skipped" if "skipped" in kinds else "passed"
    return found


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_pykkas_own_tests_pass_but_for_the_wanted_differences(tmp_path: Path) -> None:
    root = unpack_with_runtime(fetch_sdist(), tmp_path)
    report = tmp_path / "report.xml"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(REPOSITORY)]),
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests", f"--junitxml={report}", "--timeout=60"],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert report.exists(), done.stdout + done.stderr

    results = outcomes(report)
    failed = {name.partition("::")[2] for name, result in results.items() if result != "passed"}
    passed = [name for name, result in results.items() if result == "passed"]
    passed_on_loop = [name for name in passed if "[loop" in name]

    assert failed == WANTED_DIFFERENCES, done.stdout
    assert len(passed_on_loop) >= FLOOR_LOOP, sorted(results)
    assert len(passed) >= FLOOR_ALL

"""Fixtures that all tests share, and how Hypothesis runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.redis import ValkeyForTests

# A failure prints the blob that repeats it. No deadline: the machine is shared, time is not what
# these tests are about; for the same reason slow generation is no failure.
_COMMON = settings(deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("dev", _COMMON, max_examples=50)
settings.register_profile("ci", _COMMON, max_examples=100, derandomize=False)
settings.register_profile("full", _COMMON, max_examples=2_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


@pytest.fixture(autouse=True, scope="session")
def no_settings_from_outside() -> None:
    """Settings of the person who runs the tests must not reach them."""
    for name in [name for name in os.environ if name.startswith("PILOTAGE_")]:
        del os.environ[name]


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyForTests]:
    """One real server a test process (a process is an xdist worker)."""
    with ValkeyForTests(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def valkey_url(valkey_server: ValkeyForTests) -> str:
    """The URL of a real, empty server. It is this test's alone while the test runs."""
    valkey_server.flush()
    return valkey_server.url


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory that does not exist yet."""
    return tmp_path / "data"

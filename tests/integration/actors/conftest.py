"""A rig of its own for every test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.actors.rig import Rig, rig


@pytest.fixture
async def world(valkey_url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig(valkey_url, tmp_path) as made:
        yield made

"""Programs that tests put in the place of real ones."""

from __future__ import annotations

from pathlib import Path


def fake_program(folder: Path, body: str) -> Path:
    """An executable shell script in `folder`."""
    path = folder / "fake-server"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path

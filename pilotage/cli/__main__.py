"""`python -m pilotage.cli` is the `pilotage` command."""

from __future__ import annotations

from pilotage.cli import main

main()

"""How a person drives it: the `pilotage` command.

`main` is the entry point; each command is loaded when it is called (`pilotage.cli.root`).
"""

from __future__ import annotations

from pilotage.cli.root import main

__all__ = ["main"]

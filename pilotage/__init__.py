"""Pilotage: an actor-model workflow runtime. Every workflow run gets its own pilot.

Importing this package loads nothing else: the public names are resolved at their first use, so
that `import pilotage` costs next to nothing in a program that only wants the version.
"""

from __future__ import annotations

__version__ = "0.1.0"

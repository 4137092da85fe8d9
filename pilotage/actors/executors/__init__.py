"""Who does the attempts: Python functions and HTTP endpoints, behind one small port."""

from __future__ import annotations

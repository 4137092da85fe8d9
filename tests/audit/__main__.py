"""Run pip-audit over the lock file and say in plain words what came of it.

The exit status is 0 only if every locked package was looked up and none has a known weakness:
1 weaknesses are known, 2 something could not be looked up, most often because the service cannot
be reached from here. CI does not run it: what is published tomorrow must not fail what was built
today, and CI may have no way to the service.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

LOCK = Path(__file__).parents[2] / "requirements.lock"
CLEAN, KNOWN, UNANSWERED = 0, 1, 2
SHOWN = 2


class Weakness(msgspec.Struct):
    id: str
    fix_versions: list[str] = []


class Package(msgspec.Struct):
    name: str
    version: str = ""
    vulns: list[Weakness] = []
    skip_reason: str | None = None


class Report(msgspec.Struct):
    dependencies: list[Package]


def judge(report: Report) -> tuple[int, list[str]]:
    """The exit status and the lines to say."""
    lines = [
        f"{package.name} {package.version}: {weakness.id}, mended in "
        + (", ".join(weakness.fix_versions) or "no version yet")
        for package in report.dependencies
        for weakness in package.vulns
    ]
    skipped = [package for package in report.dependencies if package.skip_reason is not None]
    asked = len(report.dependencies) - len(skipped)
    if skipped:
        some = "; ".join(str(package.skip_reason) for package in skipped[:SHOWN])
        lines.append(f"{len(skipped)} packages could not be looked up, {asked} were: {some}")
    if not report.dependencies:
        return UNANSWERED, ["nothing was looked up"]
    if any(package.vulns for package in report.dependencies):
        return KNOWN, lines
    if skipped:
        return UNANSWERED, lines
    return CLEAN, [f"no weakness is known in {asked} packages"]


def main(arguments: Sequence[str]) -> int:
    """`arguments`: the pip-audit program."""
    done = subprocess.run(
        [
            *arguments, "--disable-pip", "--require-hashes", "--requirement", str(LOCK),
            "--format", "json", "--progress-spinner", "off", "--timeout", "15",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        status, lines = judge(msgspec.json.decode(done.stdout, type=Report))
    except msgspec.MsgspecError:
        why = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        status = UNANSWERED
        lines = [f"the service that knows weaknesses could not be asked: {why[:300]}"]
    if status == UNANSWERED:
        lines.append("the packages are NOT known to be without weaknesses: try it where it answers")
    sys.stdout.write("".join(f"audit: {line}\n" for line in lines))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
